"""What the scaling policy decides from and with: the fleet as it is known, settings, and what is remembered between decisions.

All are values that become JSON and back without a loss, so that a recorded decision can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import msgspec

from cluster.scaling.capacity import PRIOR_COSTS, CapacityModel, StepCosts
from cluster.scaling.inputs import MAX_LOAD_AGE_S, EngineSample, IngressLoad

T = TypeVar("T")


class FleetInputs(NamedTuple):
    """All that is known at one moment. What is missing or old is left out or tells its age; nothing is made up for it.

    Attributes:
        now: seconds since 1970.
        engines: ready engines. In a large fleet a part of them will do: it stands for ``num_ready``, if all of it are known.
        ingresses: what comes through each.
        num_ready: engines that serve; None if ``engines`` are all.
        num_starting: engines that were started and do not serve yet.
        current_target: what Serve was told last; 0 also after a controller has restarted.
        kind: model and device, by which step times are learned.
        max_num_seqs, max_num_batched_tokens: slots of an engine, and tokens of a step; 0 if unknown.
        num_unknown: ready engines that have said nothing yet to anybody who was heard.
    """

    now: float
    engines: tuple[EngineSample, ...] = ()
    ingresses: tuple[IngressLoad, ...] = ()
    num_ready: int | None = None
    num_starting: int = 0
    current_target: int = 0
    kind: str = ""
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    num_unknown: int = 0


@dataclass(frozen=True)
class PolicySettings:
    """What a fleet is to achieve, and within which bounds.

    Attributes:
        min_replicas, max_replicas: bounds of the target; 0 engines are possible.
        slo_ttft_s: objective for the time to the first token, in seconds.
        slo_tpot_ms: objective for each token after it, on average over an answer, in milliseconds.
        slo_share: of the answers, those that are to meet both.
        cost_weight: 1 by default; with more, engines leave sooner and less is kept in reserve.
        start_s: seconds from a decision to an engine that serves.
        max_age_s: an ingress that has said nothing for so long is not known; on a machine that is not too busy none is
            (``deployments.autoscaling.report_publisher.PERIOD_S``). Engines are known for longer (``policy``).
        max_state_age_s: a remembered target that is older is not believed after a restart.
        costs: step times to begin with; they are learned.
    """

    min_replicas: int = 1
    max_replicas: int = 8
    slo_ttft_s: float = 2.0
    slo_tpot_ms: float = 100.0
    slo_share: float = 0.99
    cost_weight: float = 1.0
    start_s: float = 15.0
    max_age_s: float = MAX_LOAD_AGE_S
    max_state_age_s: float = 600.0
    costs: StepCosts = PRIOR_COSTS


class SeenEngine(NamedTuple):
    """The counters of an engine at its last sample: ``num_sent_tokens`` are those of all prompts, ``num_prompt_tokens`` without
    what the prefix cache had, counted when a prompt begins, ``num_prefill_tokens`` when they are computed."""

    sampled_at: float
    num_arrived: int
    num_ended: int
    num_prompt_tokens: int
    num_generated_tokens: int
    num_running: int
    running_tokens: int
    num_sent_tokens: int = 0
    num_steps: int = 0
    num_prefill_tokens: int = 0


@dataclass(frozen=True)
class PolicyState:
    """What is remembered from decision to decision.

    Attributes:
        at: when it was made; 0 before the first decision.
        target: what was decided.
        arrivals_per_s: level of the arrivals; None before any were seen.
        sent_tokens_per_s: level of the tokens of their prompts.
        rate, sent_rate: both as they come, averaged where few do.
        begins_cold: at the first decision engines had done too little to know how long answers are.
        arrived_at, ended_at: when requests that came, and that ended, were counted last.
        num_in_system: requests that ran and waited, on average of late; None before any were counted.
        since: when the decisions without a long pause began.
        idle_since: since when nothing has run, waited or come; None: something has.
        num_arrived, prompt_tokens, num_ended, output_tokens: requests of late and their tokens, older ones ever less; prompts
            without what the prefix cache had, and (``sent_tokens``) with it.
        context_tokens: of a row that decodes, on average.
        head_room: share of the demand that is kept in reserve; learned from the objectives that were missed.
        num_met, num_missed: answers of all ingresses when it was looked last.
        num_recent, num_recent_missed: answers of about the last hour, and those of them that missed an objective.
        num_ingresses: those whose answers were counted when it was looked last.
        demands: (second, engines wanted) of the recent past, at most one every few seconds.
        seen: engines by id, at most ``policy.MAX_SEEN``.
        capacity: step times by kind.
    """

    at: float = 0.0
    target: int = 0
    arrivals_per_s: float | None = None
    since: float = 0.0
    num_arrived: float = 0.0
    prompt_tokens: float = 0.0
    num_ended: float = 0.0
    output_tokens: float = 0.0
    context_tokens: float | None = None
    head_room: float | None = None
    num_met: int = 0
    num_missed: int = 0
    demands: tuple[tuple[float, float], ...] = ()
    seen: dict[str, SeenEngine] = field(default_factory=dict)
    idle_since: float | None = None
    capacity: dict[str, CapacityModel] = field(default_factory=dict)
    sent_tokens_per_s: float | None = None
    num_in_system: float | None = None
    sent_tokens: float = 0.0
    num_recent: float = 0.0
    num_recent_missed: float = 0.0
    num_ingresses: int = 0
    rate: float | None = None
    sent_rate: float | None = None
    begins_cold: bool = True
    arrived_at: float = 0.0
    ended_at: float = 0.0


@dataclass(frozen=True)
class Decision:
    """How many engines there are to be, why, and what to remember."""

    target: int
    reason: str
    state: PolicyState


def signal_age_s(inputs: FleetInputs) -> float:
    """Age of the oldest that is known of an engine or an ingress; 0 if nothing is."""
    ages = [engine.age_s for engine in inputs.engines]
    return max([*ages, *(inputs.now - ingress.sampled_at for ingress in inputs.ingresses)], default=0.0)


def to_json(value: FleetInputs | PolicySettings | PolicyState | Decision) -> bytes:
    """As one line of JSON."""
    return msgspec.json.encode(value)


def from_json(text: bytes | str, kind: type[T]) -> T:
    """What ``to_json`` wrote, equal to what it was.

    Raises:
        msgspec.ValidationError: it is something else.
    """
    return msgspec.json.decode(text, type=kind)
