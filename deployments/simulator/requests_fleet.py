"""Single requests on a fleet in fluid steps: each engine decodes its rows at one pace and computes prompts in order; time passes
in windows of one tick of Serve's controller.

Serve's own rules: a decision takes effect one tick later, from no engine a request starts one without asking the policy, down to
none goes only through one. The engine that has least to do leaves; it finishes what it has.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from cluster.outputs import EngineLoad
from deployments.simulator.arrivals import Arrivals
from deployments.simulator.result import Result, percentiles
from deployments.simulator.scaler import Scaler, View
from deployments.simulator.setup import SimulatorSettings

_TICK_S = 0.5
_DECIDE_S = 1.0
_MEMORY_S = 5.0
_SHOWN = 8


class _Engine:
    """``rows``: (steps at its end, request) as a heap; ``queue``: (first token at, request) in order."""

    # fmt: off
    __slots__ = (
        "arrived", "ended", "free_at", "full_until", "generated", "name", "prefill", "prompts", "queue", "rows", "steps", "tokens",  # noqa: E501
    )
    # fmt: on

    def __init__(self, name: int, now: float) -> None:
        self.name = name
        self.rows: list[tuple[float, int]] = []
        self.queue: list[tuple[float, int]] = []
        self.free_at = now
        self.full_until = 0.0
        self.steps = 0.0
        self.tokens = 0.0  # that the rows look back at
        self.prefill = 0.0  # tokens of prompts to compute
        self.arrived = self.ended = 0
        self.generated = self.prompts = 0.0


def simulate_requests(
    load: Arrivals,
    settings: SimulatorSettings,
    scaler: Scaler,
    initial: int,
    progress: Callable[[float], None] = lambda share: None,
) -> Result:
    """Run ``scaler`` on single requests until the last has its answer.

    Args:
        initial: engines at the beginning.
        progress: told the share that is done.
    """
    costs, policy = settings.costs, settings.policy
    rng = np.random.default_rng(settings.seed)
    arrivals, prompts, outputs = load.at.tolist(), load.prompt.tolist(), load.output.tolist()
    contexts = (load.prompt + load.output / 2).tolist()
    count, limit = len(arrivals), settings.max_num_seqs
    first_at, tpot = np.full(count, np.inf), np.zeros(count)
    began_at = [0.0] * count
    engines = [_Engine(i, 0.0) for i in range(initial)]
    leaving: list[_Engine] = []
    starting: list[float] = []
    held: list[int] = []
    names, target, decided = initial, initial, initial
    paid, num_starts, peak = 0.0, 0, initial
    shown: list[tuple[float, int]] = [(0.0, initial)]
    rate = prompt_rate = 0.0
    met, missed = [0, 0], [0, 0]
    following, now, last_decision = 0, 0.0, -1e9
    keep = float(np.exp(-_TICK_S / _MEMORY_S))
    warm = [i for i in range(count) if arrivals[i] < 10.0]
    if warm:
        rate = len(warm) / min(10.0, max(load.duration_s, 1.0))
        prompt_rate = sum(prompts[i] for i in warm) / min(10.0, max(load.duration_s, 1.0))
    end = load.duration_s
    finished = 0
    while finished < count or now < end:
        then = now + _TICK_S
        came, came_tokens = 0, 0.0
        # Engines that are there now.
        due = sorted(at for at in starting if at < then)
        if due:
            starting = [at for at in starting if at >= then]
            for at in due:
                engines.append(_Engine(names, max(at, now)))
                names += 1
        weight = settings.prefill_weight
        order = [(weight * engine.prefill + engine.tokens, engine.name, engine) for engine in engines]
        heapq.heapify(order)
        newcomers: list[tuple[float, int]] = [(now, i) for i in held] if engines else []
        if engines:
            held = []
        while following < count and arrivals[following] < then:
            came += 1
            came_tokens += prompts[following]
            if engines:
                newcomers.append((arrivals[following], following))
            else:
                held.append(following)
            following += 1
        for at, i in newcomers:
            busy, name, engine = order[0]
            heapq.heapreplace(order, (busy + weight * prompts[i], name, engine))
            rows = len(engine.rows)
            decode_s = costs.step + rows * costs.decode_row + costs.context_token * engine.tokens
            parts = prompts[i] / max(settings.max_num_batched_tokens - rows, 1)
            if engine.free_at <= at:
                takes = costs.prefill_token * prompts[i] + decode_s * max(1.0, np.ceil(parts))
                engine.free_at = at + takes + (0.5 * decode_s if engine.rows else 0.0)
            else:
                engine.free_at += costs.prefill_token * prompts[i] + decode_s * parts
            engine.queue.append((engine.free_at, i))
            engine.prefill += prompts[i]
            engine.arrived += 1
        for engine in (*engines, *leaving):
            rows_all = len(engine.rows)
            rows = min(rows_all, limit)
            decode_s = (
                costs.step
                + rows * costs.decode_row
                + costs.context_token * engine.tokens * (rows / rows_all if rows_all else 1.0)
            )
            budget = max(settings.max_num_batched_tokens - rows, 1)
            most = budget * _TICK_S / (decode_s + budget * costs.prefill_token)
            # Prompts that are done within the tick, and a part of the next one.
            computed = min(engine.prefill, most)
            pace = (_TICK_S - computed * costs.prefill_token) / decode_s
            before, engine.steps = engine.steps, engine.steps + pace
            engine.generated += pace * rows
            engine.prompts += computed
            engine.prefill -= computed
            queue = engine.queue
            # A request gets slot and memory before its prompt is computed; the first in the queue waits for both.
            taken = 0
            while taken < len(queue) and queue[taken][0] < then:
                at, i = queue[taken]
                if engine.rows and (len(engine.rows) >= limit or engine.tokens + contexts[i] > settings.kv_tokens):
                    break
                taken += 1
                at = max(at, engine.full_until)
                first_at[i] = at
                (met if at - arrivals[i] <= policy.slo_ttft_s else missed)[0] += 1
                began_at[i] = at
                begun = before + pace * max(0.0, at - now) / _TICK_S
                heapq.heappush(engine.rows, (begun + outputs[i] - 1, i))
                engine.tokens += contexts[i]
            engine.full_until = then if taken < len(queue) and queue[taken][0] < then else 0.0
            del queue[:taken]
            if not queue:
                engine.prefill = 0.0
            while engine.rows and engine.rows[0][0] <= engine.steps:
                ended, i = heapq.heappop(engine.rows)
                at = max(now + (ended - before) / pace * _TICK_S if pace else then, began_at[i])
                tpot[i] = (at - began_at[i]) / max(outputs[i] - 1, 1)
                (met if tpot[i] <= policy.slo_tpot_ms / 1e3 else missed)[1] += 1
                engine.tokens -= contexts[i]
                engine.ended += 1
                finished += 1
        paid += (len(engines) + len(leaving) + len(starting)) * _TICK_S
        leaving = [engine for engine in leaving if engine.rows or engine.queue]
        rate = rate * keep + (1 - keep) * came / _TICK_S
        prompt_rate = prompt_rate * keep + (1 - keep) * came_tokens / _TICK_S
        now = then
        # What was decided a tick ago.
        changed = False
        more = decided - len(engines) - len(starting)
        if not engines and not starting and held:
            more, decided, target = 1, 1, 1
        if more > 0:
            num_starts += more
            starting.extend(now + float(rng.choice(settings.start_times_s)) for _ in range(more))
            changed = True
        while more < 0:
            changed = True
            more += 1
            if starting:
                starting.remove(max(starting))
            elif engines:
                victim = min(engines, key=lambda e: (len(e.rows) + len(e.queue), -e.name))
                engines.remove(victim)
                leaving.append(victim)
        if changed:
            shown.append((now, len(engines) + len(starting)))
            peak = max(peak, len(engines) + len(starting))
        if now - last_decision >= _DECIDE_S and (engines or starting):
            last_decision = now
            view = View(
                now,
                tuple((str(engine.name), _told(engine, settings)) for engine in engines[:_SHOWN]),
                len(engines),
                len(starting),
                target,
                sum(len(engine.rows) + len(engine.queue) for engine in engines) + len(held),
                len(held),
                rate,
                prompt_rate,
                (met[0], met[1]),
                (missed[0], missed[1]),
            )
            target = scaler.target(view)
            if target == 0 and (view.num_in_system or len(engines) + len(starting) > 1):
                target = 1
            decided = target
            progress(following / max(count, 1))
    ttft = first_at - load.at
    ttft_ok, tpot_ok = ttft <= policy.slo_ttft_s, tpot <= policy.slo_tpot_ms / 1e3
    return Result(
        count,
        float((ttft_ok & tpot_ok).mean()),
        float(ttft_ok.mean()),
        float(tpot_ok.mean()),
        paid / 3600,
        peak,
        num_starts,
        percentiles(ttft),
        percentiles(tpot[load.output > 1] * 1e3),
        shown,
    )


def _told(engine: _Engine, settings: SimulatorSettings) -> EngineLoad:
    running, waiting = len(engine.rows), len(engine.queue)
    return EngineLoad(
        free=1,
        max_queued=1,
        num_ended=engine.ended,
        num_tokens=round(engine.tokens + engine.prefill),
        num_running=running,
        num_waiting=waiting,
        waiting_tokens=round(engine.prefill),
        kv_tokens=settings.kv_tokens,
        num_arrived=engine.arrived,
        num_prompt_tokens=round(engine.prompts),
        num_generated_tokens=round(engine.generated),
    )
