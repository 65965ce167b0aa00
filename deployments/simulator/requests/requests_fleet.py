"""Single requests on a fleet, in ticks of Serve's controller: arrivals, engines, events, and a decision that takes effect one
tick later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from deployments.simulator.arrivals import Arrivals
from deployments.simulator.events import Event
from deployments.simulator.requests.answers import Answers, Task
from deployments.simulator.requests.fleet import Fleet, MakeEngine
from deployments.simulator.requests.fluid_engine import FluidEngine
from deployments.simulator.result import Result, percentiles, shares_over_time
from deployments.simulator.scaler import Scaler, View
from deployments.simulator.setup import SimulatorSettings

_TICK_S = 0.5
_MEMORY_S = 2.0
_SHOWN = 8
_WARM_S = 10.0


def simulate_requests(
    load: Arrivals,
    settings: SimulatorSettings,
    scaler: Scaler,
    initial: int,
    progress: Callable[[float], None] = lambda share: None,
    events: Sequence[Event] = (),
    make: MakeEngine = FluidEngine,
    ran_before: bool = True,
    until_s: float = 0.0,
) -> Result:
    """Run ``scaler`` on single requests until the last has its answer.

    Args:
        initial: engines at the beginning.
        progress: told the share that is done.
        events: what happens besides, in order of time.
        make: an engine; its fidelity is that of the simulation.
        ran_before: the rates of what comes are known when the recording begins, as of a service that has been running.
        until_s: second until which the fleet is there in any case.
    """
    answers = Answers(load, settings)
    fleet = Fleet(settings, answers, make, initial)
    arriving, controller, rates = _Arriving(load), _Controller(scaler, initial), _Rates(load, ran_before)
    coming = deque(events)
    now = 0.0
    while answers.num_ended < len(load.at) or now < max(load.duration_s, until_s):
        while coming and coming[0].at <= now:
            event = coming.popleft()
            if event.event == "controller_restart":
                controller.restart(event, now)
            else:
                fleet.happens(event, now)
        fleet.take_away(now)
        newcomers = arriving.until(now + _TICK_S)
        fleet.advance(now, now + _TICK_S, newcomers)
        rates.count(newcomers, answers.prompts)
        now += _TICK_S
        controller.tick(now, fleet, arriving, rates, answers)
        progress(arriving.share)
    return _result(load, settings, answers, fleet, now)


class _Arriving:
    """Requests in the order in which they come."""

    def __init__(self, load: Arrivals) -> None:
        self._at = load.at.tolist()
        self.num_arrived = 0

    def until(self, then: float) -> list[tuple[float, Task]]:
        first = self.num_arrived
        while self.num_arrived < len(self._at) and self._at[self.num_arrived] < then:
            self.num_arrived += 1
        return [(self._at[i], Task(i)) for i in range(first, self.num_arrived)]

    @property
    def share(self) -> float:
        return self.num_arrived / max(len(self._at), 1)


class _Rates:
    """Arrivals and tokens of prompts a second, of late; at first those of the first seconds, if it ran before."""

    def __init__(self, load: Arrivals, ran_before: bool) -> None:
        warm = load.at < (_WARM_S if ran_before else 0.0)
        seconds = min(_WARM_S, max(load.duration_s, 1.0))
        self.arrivals = float(np.count_nonzero(warm)) / seconds
        self.prompt_tokens = float(load.prompt[warm].sum()) / seconds
        self._keep = float(np.exp(-_TICK_S / _MEMORY_S))

    def count(self, newcomers: list[tuple[float, Task]], prompts: list[int]) -> None:
        tokens = sum(prompts[task.request] for _, task in newcomers)
        self.arrivals += (1 - self._keep) * (len(newcomers) / _TICK_S - self.arrivals)
        self.prompt_tokens += (1 - self._keep) * (tokens / _TICK_S - self.prompt_tokens)


class _Controller:
    """Serve's, with the rule that decides: what was decided takes effect a tick later, unless the controller is down."""

    def __init__(self, scaler: Scaler, initial: int) -> None:
        self._scaler = scaler
        self._target = self._decided = initial
        self._decided_at: float | None = None  # for another target than the one that is in force
        self._back_at = 0.0
        self._restarted: Event | None = None

    def restart(self, event: Event, now: float) -> None:
        self._back_at, self._restarted = now + event.down_s, event

    def tick(self, now: float, fleet: Fleet, arriving: _Arriving, rates: _Rates, answers: Answers) -> None:
        if now < self._back_at:
            return
        if not fleet.size and fleet.held:
            # Serve asks no policy where there is no engine.
            self._decided = self._target = 1
        fleet.resize(self._decided, now, now if self._decided_at is None else self._decided_at, self._back_at)
        self._decided_at = None
        if not fleet.size:
            return
        event, self._restarted = self._restarted, None
        if event is not None:
            self._scaler.restart(event.state == "kept")
        view = View(
            now,
            tuple((str(engine.name), engine.told()) for engine in fleet.ready[:_SHOWN]),
            len(fleet.ready),
            len(fleet.starting),
            self._target,
            arriving.num_arrived - answers.num_ended,
            len(fleet.held),
            rates.arrivals,
            rates.prompt_tokens,
            (answers.met[0], answers.met[1]),
            (answers.missed[0], answers.missed[1]),
            is_blind=event is not None,
        )
        target = self._scaler.target(view)
        if target == 0 and (view.num_in_system or fleet.size > 1):
            target = 1
        if target != self._decided:
            self._decided_at = now
        self._target = self._decided = target


def _result(load: Arrivals, settings: SimulatorSettings, answers: Answers, fleet: Fleet, span_s: float) -> Result:
    policy, ttft, tpot = settings.policy, answers.ttft_s, answers.tpot_s
    ttft_ok, tpot_ok = ttft <= policy.slo_ttft_s, tpot <= policy.slo_tpot_ms / 1e3
    return Result(
        len(load.at),
        float((ttft_ok & tpot_ok).mean()),
        float(ttft_ok.mean()),
        float(tpot_ok.mean()),
        fleet.paid_s / 3600,
        fleet.peak,
        fleet.num_starts,
        percentiles(ttft),
        percentiles(tpot[load.output > 1] * 1e3),
        fleet.sizes,
        fleet.num_lost,
        shares_over_time(load.at, ttft_ok & tpot_ok, np.ones(len(load.at)), load.duration_s),
        span_s,
    )
