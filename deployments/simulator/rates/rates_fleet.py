"""Days of load of which only rates are known: engines are alike, requests are classes that flow. One pass a window."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from cluster.outputs import EngineLoad
from deployments.simulator.arrivals import Array, Arrivals
from deployments.simulator.events import Event, engines_lost
from deployments.simulator.rates.flow import Flow, Window
from deployments.simulator.rates.machines import Machines
from deployments.simulator.rates.steady_load import SHARES, SteadyLoad
from deployments.simulator.result import Result, percentiles, shares_over_time
from deployments.simulator.scaler import Scaler, View
from deployments.simulator.setup import SimulatorSettings

_MOST_WINDOWS = 60_000
_LEAST_S = 0.5
_MEMORY_S = 2.0
_SHOWN = 4000


def simulate_rates(
    load: Arrivals,
    settings: SimulatorSettings,
    scaler: Scaler,
    initial: int,
    progress: Callable[[float], None] = lambda share: None,
    events: Sequence[Event] = (),
) -> Result:
    """Run ``scaler`` on rates; arrivals of a window are drawn from Poisson's distribution.

    Args:
        initial: engines at the beginning.
        progress: told the share that is done.
        events: what happens besides, in order of time.
    """
    dt = max(_LEAST_S, load.duration_s / _MOST_WINDOWS)
    expected = _expected(load, dt)
    rng = np.random.default_rng(settings.seed)
    drawn = rng.poisson(expected).astype(float).tolist()
    mean_output = load.shape.output_tokens
    flow, machines = Flow(load, settings), Machines(initial, settings, rng)
    steady_load = SteadyLoad(load, settings, initial)
    # What prompts have together varies with their lengths, too, as an ingress sees it.
    prompts = np.array(drawn) * flow.mean_prompt + _spread(load, settings) * np.sqrt(drawn) * rng.standard_normal(
        len(drawn)
    )
    sent = np.maximum(prompts, 0.0).tolist()
    answers, told = _Answers(load, settings, drawn, dt), _Told(drawn[0], dt, flow, settings)
    coming, back_at, target = deque(events), 0.0, initial
    waits_of = float(initial)
    restarted: Event | None = None
    for window, arrived in enumerate(drawn):
        now = window * dt
        while coming and coming[0].at <= now:
            event = coming.popleft()
            if event.event == "controller_restart":
                back_at, restarted = now + event.down_s, event
                continue
            share = machines.lose(engines_lost(event, settings))
            if event.event != "notice":
                flow.lose(share)
        engines = machines.serving(now, dt)
        passed = flow.pass_window(arrived, engines, dt)
        waits_of = settled(waits_of, engines, passed.steps / mean_output)
        steady = steady_load.at(expected[window] / dt / max(waits_of, 1e-9))
        answers.passed(passed, steady.ttft_s, machines.size)
        told.passed(arrived, sent[window], passed)
        if now < back_at:
            continue
        if restarted is not None:
            scaler.restart(restarted.state == "kept")
        target = scaler.target(told.view(now + dt, machines, target, answers, engines, restarted is not None))
        restarted = None
        flow.lose(steady.handed_over * machines.resize(target, now + dt, steady.drain_s))
        if window % 1024 == 0:
            progress(window / len(drawn))
    return answers.result(machines)


def settled(before: float, engines: float, answers: float) -> float:
    """Engines that waits are those of, after the time of so many answers: who has come has its share of the rows only when as
    many have ended elsewhere, and meanwhile more of the prompts; who leaves gets no more prompts at once."""
    return min(engines, before + (1 - math.exp(-answers)) * (engines - before))


def _spread(load: Arrivals, settings: SimulatorSettings) -> float:
    """Standard deviation of the length of a prompt, of which the classes show a part."""
    return float(load.prompt.mean()) * float(np.sqrt(np.expm1(settings.length_sigma**2)))


def _expected(load: Arrivals, dt: float) -> Array:
    """Requests that come in each window on average."""
    assert load.rates is not None
    ends = np.append(load.at, load.duration_s)
    cumulated = np.concatenate([[0.0], np.cumsum(load.rates * np.diff(ends))])
    edges = np.minimum(np.arange(max(1, int(np.ceil(load.duration_s / dt))) + 1) * dt, load.duration_s)
    return np.diff(np.interp(edges, ends, cumulated))


class _Told:
    """What a scaler is told of the fleet."""

    def __init__(self, first: float, dt: float, flow: Flow, settings: SimulatorSettings) -> None:
        self._dt, self._flow, self._settings = dt, flow, settings
        self._keep = float(np.exp(-dt / _MEMORY_S))
        self._rate = first / dt
        self._sent_rate = self._rate * flow.mean_prompt
        self._steps = self._arrived = self._prompt = self._generated = self._ended = 0.0

    def passed(self, arrived: float, sent: float, window: Window) -> None:
        self._rate += (1 - self._keep) * (arrived / self._dt - self._rate)
        self._sent_rate += (1 - self._keep) * (sent / self._dt - self._sent_rate)
        self._arrived += arrived
        self._prompt += window.prompt_tokens
        self._generated += window.output_tokens
        self._ended += window.num_ended
        self._steps += self._dt / window.step_s

    def view(
        self, now: float, machines: Machines, target: int, answers: _Answers, engines: float, is_blind: bool
    ) -> View:
        flow, per = self._flow, 1 / max(engines, 1e-9)
        shown = EngineLoad(
            free=1,
            max_queued=1,
            num_ended=round(self._ended * per),
            num_tokens=round((flow.context_tokens + flow.backlog) * per),
            num_running=round(flow.num_rows * per),
            num_waiting=round(flow.num_waiting * per),
            waiting_tokens=round(flow.backlog * per),
            kv_tokens=self._settings.kv_tokens,
            num_arrived=round(self._arrived * per),
            num_prompt_tokens=round(self._prompt * per),
            num_generated_tokens=round(self._generated * per),
            num_steps=round(self._steps),
            num_prefill_tokens=round(self._prompt * per),
        )
        return View(
            now,
            # Counters are of one engine: a fleet that changed begins new ones.
            ((f"{machines.ready}", shown),) if machines.ready else (),
            machines.ready,
            len(machines.starting),
            target,
            flow.num_rows + flow.num_waiting,
            0.0,
            self._rate,
            self._sent_rate,
            (round(answers.met[0]), round(answers.met[1])),
            (round(answers.missed[0]), round(answers.missed[1])),
            is_blind=is_blind,
        )


class _Answers:
    """What has become of the requests of each window.

    Attributes:
        met, missed: answers so far by objective (TTFT, TPOT), as ingresses count them.
    """

    def __init__(self, load: Arrivals, settings: SimulatorSettings, drawn: list[float], dt: float) -> None:
        self._load, self._policy, self._dt = load, settings.policy, dt
        self._arrived = np.array(drawn)
        count = len(drawn)
        self._ttft_s = np.empty((len(SHARES), count))
        self._steps = np.zeros(count + 1)  # that an answer goes through until a window begins
        self._paid = np.empty(count, int)
        self._window = self._begun = 0
        self._mean_output = float(load.output.mean())
        self._last_wait_s = 0.0
        self.met, self.missed = [0.0, 0.0], [0.0, 0.0]

    def passed(self, window: Window, ttft_s: Array, num_paid: int) -> None:
        """Args:
        ttft_s: in each cell of the distribution, for requests that find nobody left behind.
        """
        i, steps = self._window, self._steps
        steps[i + 1] = steps[i] + window.steps
        self._paid[i] = num_paid
        found = ttft_s + max(window.wait_s, self._last_wait_s)
        self._last_wait_s = window.wait_s
        self._ttft_s[:, i] = found
        late = float(SHARES @ (found > self._policy.slo_ttft_s))
        self.missed[0] += late * window.num_ended
        self.met[0] += (1 - late) * window.num_ended
        # Whether steps were short enough for an answer that ends now.
        while self._begun < i and steps[i + 1] - steps[self._begun] > self._mean_output:
            self._begun += 1
        spent = (i + 1 - self._begun) * self._dt
        is_slow = spent > self._policy.slo_tpot_ms / 1e3 * max(steps[i + 1] - steps[self._begun], 1e-9)
        (self.missed if is_slow else self.met)[1] += window.num_ended
        self._window += 1

    def result(self, machines: Machines) -> Result:
        count, dt, weights, policy = len(self._arrived), self._dt, self._arrived, self._policy
        tpot_s = self._tpot_s()
        ttft_ok = SHARES @ (self._ttft_s <= policy.slo_ttft_s)
        tpot_ok = (tpot_s <= policy.slo_tpot_ms / 1e3).mean(axis=0)
        total = weights.sum()
        share = (lambda ok: float((ok * weights).sum() / total)) if total else (lambda ok: 1.0)
        every = max(1, count // _SHOWN)
        return Result(
            float(total),
            share(ttft_ok * tpot_ok),
            share(ttft_ok),
            share(tpot_ok),
            machines.paid_s / 3600,
            machines.peak,
            machines.num_starts,
            percentiles(self._ttft_s.ravel(), (SHARES[:, None] * weights).ravel()),
            percentiles(tpot_s.ravel() * 1e3, np.broadcast_to(weights, tpot_s.shape).ravel()),
            [(float(i * dt), int(self._paid[i])) for i in range(0, count, every)],
            machines.num_lost,
            shares_over_time((np.arange(count) + 0.5) * dt, ttft_ok * tpot_ok, weights, self._load.duration_s),
            count * dt,
        )

    def _tpot_s(self) -> Array:
        """By class and window: an answer that begins there decodes until the steps behind it are as many as its tokens."""
        steps, dt = self._steps, self._dt
        times = np.arange(len(steps)) * dt
        middles = times[:-1] + dt / 2
        begun = np.interp(middles, times, steps)
        found = np.empty((len(self._load.output), len(middles)))
        for k, tokens in enumerate(self._load.output):
            ends = np.interp(begun + tokens, steps, times)
            found[k] = (ends - middles) / np.maximum(np.minimum(tokens, steps[-1] - begun), 1e-9)
        return found
