"""The scaling policy of one application, as Serve's controller asks it: gathers what it is to know, and keeps what it decided."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from cluster.config import Autoscaling
from cluster.scaling.fleet import FleetInputs, PolicySettings, PolicyState, signal_age_s
from cluster.scaling.inputs import EngineSample, IngressLoad, ScalingInputs
from cluster.scaling.log import Decide, Record, described, source_hash
from cluster.scaling.starts import Starts, looked
from deployments.autoscaling.decision_file import decision_file
from deployments.autoscaling.live_settings import in_force
from deployments.autoscaling.store import LATEST, STATE, ScalingStore
from deployments.autoscaling.store_thread import Seen, StoreThread

# What did not change is told again so often.
_TELL_S = 1.0
NOT_READ = "hold: the store has not been read yet"


class Context(Protocol):
    """What is used of Ray Serve's ``AutoscalingContext``."""

    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    current_num_replicas: int
    target_num_replicas: int
    running_replicas: list[Any]


class _Kept(msgspec.Struct):
    """What outlives Serve's controller."""

    sequence: int
    saved_at: float
    state: PolicyState
    starts: Starts = Starts()


class EnginePolicy:
    """Called in one thread.

    Args:
        line: the settings as the configuration has them.
        kind, max_num_seqs, max_num_batched_tokens: as ``FleetInputs`` has them.
        decide: the policy.
        thread: reads and writes what outlives this process.
        log: where that writes the decisions; empty: nowhere.
        now, wall: clocks; seconds since some moment, and since 1970.
    """

    def __init__(
        self,
        line: Autoscaling,
        kind: str,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        decide: Decide,
        thread: StoreThread,
        log: str = "",
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._line, self._kind = line, kind
        self._max_num_seqs, self._max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self._decide, self._thread, self._log = decide, thread, log
        self._now, self._wall = now, wall
        self._state: PolicyState | None = None
        self._starts = Starts()
        self._sequence = 0
        self._changes: tuple[bytes | None, Autoscaling] = None, line
        self._told: tuple[Any, float] = None, -_TELL_S

    @classmethod
    def of_line(
        cls,
        line: dict[str, Any],
        kind: str,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        decide: str,
        application: str,
    ) -> EnginePolicy:
        """The policy of ``application`` of this process's cluster; ``decide`` as ``module:function``."""
        module, _, name = decide.partition(":")
        log = decision_file(application)
        thread = StoreThread(lambda: ScalingStore(application), log)
        function = getattr(importlib.import_module(module), name)
        settings, path = Autoscaling.model_validate(line), str(log.path) if log else ""
        return cls(settings, kind, max_num_seqs, max_num_batched_tokens, function, thread, path)

    def target(self, context: Context) -> int:
        """How many engines there are to be: within the bounds in force, and as many as now where nothing is known."""
        seen = self._thread.seen
        if seen is None:
            # Not even the bounds are known that a person may have set.
            return context.target_num_replicas
        settings = self._in_force(seen.settings)
        state = self._restored(seen.state)
        self._sequence += 1
        inputs = self._inputs(context, seen)
        ready = {replica.unique_id for replica in context.running_replicas}
        self._starts = looked(self._starts, inputs.now, context.target_num_replicas, ready)
        policy_settings = _policy_settings(settings, context, self._starts)
        target, reason, following, error = context.target_num_replicas, "", None, ""
        try:
            decision = self._decide(inputs, state, policy_settings)
            target, reason, following = int(decision.target), decision.reason, decision.state
        except Exception as failure:
            error = described(failure)
            reason = f"hold: the policy failed: {error}"
        target = max(policy_settings.min_replicas, min(policy_settings.max_replicas, target))
        self._state = following or state
        self._tell(
            settings,
            Record(
                self._sequence,
                inputs.now,
                source_hash(),
                policy_settings,
                inputs,
                state,
                target,
                reason,
                following,
                error,
            ),
        )
        return target

    def _in_force(self, entry: bytes | None) -> Autoscaling:
        if entry != self._changes[0]:
            self._changes = entry, in_force(self._line, entry)
        return self._changes[1]

    def _restored(self, entry: bytes | None) -> PolicyState:
        """The state, at first that of an earlier policy, which has its time in it."""
        if self._state is None:
            self._state = PolicyState()
            if entry is not None:
                try:
                    kept = msgspec.json.decode(entry, type=_Kept)
                    self._state, self._sequence, self._starts = kept.state, kept.sequence, kept.starts
                except msgspec.DecodeError:  # of another version of this project
                    pass
        return self._state

    def _inputs(self, context: Context, seen: Seen) -> FleetInputs:
        ready = {f"engine-{replica.unique_id}" for replica in context.running_replicas}
        now, wall = self._now(), self._wall()
        heard = [(inputs, max(0.0, now - heard_at)) for inputs, heard_at in seen.reports.values()]
        engines = _engines(heard, ready)
        return FleetInputs(
            now=wall,
            engines=engines,
            ingresses=tuple(_by_this_clock(inputs.ingress, wall - age_s) for inputs, age_s in heard),
            num_ready=len(ready),
            num_starting=max(0, context.target_num_replicas - len(ready)),
            current_target=context.target_num_replicas,
            kind=self._kind,
            max_num_seqs=self._max_num_seqs,
            max_num_batched_tokens=self._max_num_batched_tokens,
            num_unknown=len(ready) - len(engines),
        )

    def _tell(self, settings: Autoscaling, record: Record) -> None:
        """Write what is to be kept and seen, when something else was decided and from time to time."""
        outcome = record.target, record.reason.partition(":")[0], record.settings, record.inputs.num_ready
        if outcome == self._told[0] and self._now() - self._told[1] < _TELL_S:
            return
        self._told = outcome, self._now()
        latest = {
            "line": self._line.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            "target": record.target,
            "running": record.inputs.num_ready,
            "reason": record.reason,
            "signal_age_s": round(signal_age_s(record.inputs), 3),
            "sequence": record.sequence,
            "at": record.at,
            "policy": record.policy,
            "log": self._log,
        }
        assert self._state is not None
        kept = msgspec.json.encode(_Kept(record.sequence, record.at, self._state, self._starts))
        self._thread.keep({LATEST: json.dumps(latest).encode(), STATE: kept}, record.line())


def _policy_settings(settings: Autoscaling, context: Context, starts: Starts) -> PolicySettings:
    """Within Serve's bounds, too: it lowers them for a time where a person gives an application less of the cluster."""
    lowest, highest = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    bounds = {name: max(lowest, min(highest, getattr(settings, name))) for name in ("min_replicas", "max_replicas")}
    return PolicySettings(
        **bounds,
        slo_ttft_s=settings.slo_ttft_s,
        slo_tpot_ms=settings.slo_tpot_ms,
        slo_share=settings.slo_share,
        cost_weight=settings.cost_weight,
        start_s=starts.start_s(PolicySettings.start_s),
    )


def _engines(heard: Iterable[tuple[ScalingInputs, float]], ready: set[str]) -> tuple[EngineSample, ...]:
    """Of each engine that Serve knows, what it said last to any ingress."""
    youngest: dict[str, EngineSample] = {}
    for inputs, age_s in heard:
        for sample in inputs.engines:
            known = youngest.get(sample.engine_id)
            if sample.engine_id in ready and (known is None or sample.age_s + age_s < known.age_s):
                youngest[sample.engine_id] = sample._replace(age_s=sample.age_s + age_s)
    return tuple(youngest[engine_id] for engine_id in sorted(youngest))


def _by_this_clock(ingress: IngressLoad, at: float) -> IngressLoad:
    return ingress._replace(sampled_at=at)
