"""Who decides in a simulation: the policy, or a rule to compare it with. All see the same fleet."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import NamedTuple, Protocol

from cluster.outputs import EngineLoad
from cluster.scaling.fleet import FleetInputs, PolicyState
from cluster.scaling.inputs import EngineSample, IngressLoad, TargetCount
from cluster.scaling.policy import decide
from deployments.simulator.setup import SimulatorSettings


class View(NamedTuple):
    """The fleet as a scaler sees it.

    Attributes:
        now: seconds of the recording.
        loads: of some ready engines, which stand for ``num_ready``.
        num_ready, num_starting: engines.
        target: what was decided last.
        num_in_system: requests that run or wait.
        num_held: of these, those that no engine has.
        arrivals_per_s, prompt_tokens_per_s: over about the last two seconds.
        num_met, num_missed: answers so far, by objective (TTFT, TPOT).
        is_blind: the controller has just restarted: no target and nothing of the engines is known yet.
    """

    now: float
    loads: tuple[tuple[str, EngineLoad], ...]
    num_ready: int
    num_starting: int
    target: int
    num_in_system: float
    num_held: float
    arrivals_per_s: float
    prompt_tokens_per_s: float
    num_met: tuple[int, int]
    num_missed: tuple[int, int]
    is_blind: bool = False


class Scaler(Protocol):
    """Decides how many engines there are to be."""

    def target(self, view: View) -> int: ...

    def restart(self, keeps_state: bool) -> None:
        """The controller has restarted; what is kept outside of it is there, or lost, too."""


class PolicyScaler:
    """``cluster.scaling.policy`` as Serve would call it, with its state kept outside."""

    def __init__(self, settings: SimulatorSettings) -> None:
        # Where it serves it has seen the last starts.
        self.settings = replace(settings.policy, start_s=statistics.median(settings.start_times_s))
        self.state = PolicyState()
        self._slots, self._step_tokens = settings.max_num_seqs, settings.max_num_batched_tokens

    def restart(self, keeps_state: bool) -> None:
        if not keeps_state:
            self.state = PolicyState()

    def target(self, view: View) -> int:
        if view.is_blind:
            view = view._replace(loads=(), target=0)
        at = view.now + 1e6  # a moment since 1970; 0 would mean never
        engines = tuple(EngineSample(name, load, 0.0) for name, load in view.loads)
        ttft, tpot = (TargetCount(met, missed, None) for met, missed in zip(view.num_met, view.num_missed))
        ingress = IngressLoad(
            at,
            0,
            view.arrivals_per_s,
            view.prompt_tokens_per_s,
            int(view.num_in_system),
            int(view.num_held),
            ttft,
            tpot,
        )
        decision = decide(
            FleetInputs(
                at,
                engines,
                () if view.is_blind else (ingress,),
                view.num_ready,
                view.num_starting,
                view.target,
                "simulated",
                self._slots,
                self._step_tokens,
            ),
            self.state,
            self.settings,
        )
        self.state = decision.state
        return decision.target
