"""Days of load of which only rates are known: engines are alike, requests are classes that flow. One pass a window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from cluster.outputs import EngineLoad
from deployments.simulator.arrivals import Arrivals
from deployments.simulator.events import Event, engines_lost
from deployments.simulator.result import Result, percentiles, shares_over_time
from deployments.simulator.scaler import Scaler, View
from deployments.simulator.setup import SimulatorSettings

_MOST_WINDOWS = 60_000
_MEMORY_S = 5.0


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
    """
    assert load.rates is not None
    costs, policy = settings.costs, settings.policy
    rng = np.random.default_rng(settings.seed)
    dt = max(0.5, load.duration_s / _MOST_WINDOWS)
    count = max(1, int(np.ceil(load.duration_s / dt)))
    cumulated = np.concatenate([[0.0], np.cumsum(load.rates * np.diff(np.append(load.at, load.duration_s)))])
    edges = np.minimum(np.arange(count + 1) * dt, load.duration_s)
    expected = np.diff(np.interp(edges, np.append(load.at, load.duration_s), cumulated))
    drawn = rng.poisson(expected).astype(float).tolist()

    classes = len(load.prompt)
    prompt, output = load.prompt, load.output
    mean_prompt = float(prompt.mean())
    context = prompt + output / 2
    rows = np.zeros(classes)
    backlog, memory = 0.0, 1 - np.exp(-dt / _MEMORY_S)
    rate = drawn[0] / dt
    ready, target = float(initial), initial
    starting: list[float] = []
    paid, num_starts, peak = 0.0, 0, initial
    arrived_total = prompt_total = generated_total = ended_total = 0.0
    met = [0, 0]
    missed = [0, 0]
    step_of, wait_of, paid_of = np.empty(count), np.empty(count), np.empty(count)
    steps_done = np.zeros(count + 1)
    # The window before an answer ends tells whether its steps were short enough; the policy hears of it then.
    pending = 0
    coming, back_at, num_lost = deque(events), 0.0, 0
    restarted: Event | None = None
    for window in range(count):
        now = window * dt
        while coming and coming[0].at <= now:
            event = coming.popleft()
            if event.event == "controller_restart":
                back_at, restarted = now + event.down_s, event
                continue
            fewer = min(int(ready), engines_lost(event, settings))
            if event.event != "notice":
                # What they had is computed anew elsewhere.
                backlog += float(rows @ context) * fewer / max(ready, 1.0)
            ready -= fewer
            num_lost += fewer
        arrived = drawn[window]
        fell_due = [at for at in starting if at < now + dt]
        starting = [at for at in starting if at >= now + dt]
        # Engines that become ready within the window serve the rest of it.
        engines = ready + sum((now + dt - max(at, now)) / dt for at in fell_due)
        ready += len(fell_due)
        serving = max(engines, 1e-9)
        num_rows = float(rows.sum())
        each = num_rows / serving
        active = min(each, settings.max_num_seqs)
        per_row = costs.decode_row + costs.context_token * (float(rows @ context) / num_rows if num_rows else 0.0)
        decode_s = costs.step + active * per_row
        budget = max(settings.max_num_batched_tokens - active, 1.0)
        full_s = decode_s + budget * costs.prefill_token
        able = serving * budget * dt / full_s
        wanted = backlog + arrived * mean_prompt
        done = min(wanted, able)
        steps = max((dt - done / serving * costs.prefill_token) / decode_s, 1e-9) if engines > 1e-9 else 1e-9
        step = dt / steps
        progressed = steps * active / max(each, active, 1e-9) if each else steps
        begun = done / mean_prompt
        backlog = wanted - done
        # Who begins within a window decodes for half of it.
        left = rows * np.exp(-progressed / output)
        inside = begun / classes * np.exp(-0.5 * progressed / output)
        ended = num_rows - float(left.sum()) + begun - float(inside.sum())
        rows = left + inside
        step_of[window] = step
        wait_of[window] = backlog / able * dt if able else 1e9
        steps_done[window + 1] = steps_done[window] + progressed
        paid_of[window] = ready + len(starting)
        paid += (engines + len(starting) + sum((max(at, now) - now) / dt for at in fell_due)) * dt
        peak = max(peak, int(ready) + len(starting))

        arrived_total += arrived
        prompt_total += done
        generated_total += num_rows * progressed if num_rows else 0.0
        ended_total += ended
        rate += memory * (arrived / dt - rate)
        late = wait_of[window] + 0.5 * step > policy.slo_ttft_s
        answers = round(ended)
        (missed if late else met)[0] += answers
        while pending < window and (steps_done[window + 1] - steps_done[pending]) > output.mean():
            pending += 1
        spent = (window + 1 - pending) * dt
        slow = spent / max(steps_done[window + 1] - steps_done[pending], 1e-9) > policy.slo_tpot_ms / 1e3
        (missed if slow else met)[1] += answers

        per = 1 / serving
        shown = EngineLoad(
            free=1,
            max_queued=1,
            num_ended=round(ended_total * per),
            num_tokens=round(float(rows @ context) * per + backlog * per),
            num_running=round(float(rows.sum()) * per),
            num_waiting=round(backlog / mean_prompt * per),
            waiting_tokens=round(backlog * per),
            kv_tokens=settings.kv_tokens,
            num_arrived=round(arrived_total * per),
            num_prompt_tokens=round(prompt_total * per),
            num_generated_tokens=round(generated_total * per),
        )
        # Counters are of one engine: a fleet that changed begins new ones.
        view = View(
            now + dt,
            ((f"{ready:g}", shown),) if ready else (),
            int(ready),
            len(starting),
            target,
            float(rows.sum()) + backlog / mean_prompt,
            0.0,
            rate,
            rate * mean_prompt,
            (met[0], met[1]),
            (missed[0], missed[1]),
            is_blind=restarted is not None,
        )
        if now < back_at:
            continue
        if restarted is not None:
            scaler.restart(restarted.state == "kept")
            restarted = None
        target = scaler.target(view)
        more = target - int(ready) - len(starting)
        if more > 0:
            num_starts += more
            starting.extend(now + dt + float(rng.choice(settings.start_times_s)) for _ in range(more))
        while more < 0:
            if starting:
                starting.pop()
            else:
                ready -= 1
            more += 1
        if window % 1024 == 0:
            progress(window / count)
    # An answer that begins in a window decodes until the steps behind it are as many as its tokens.
    weights = np.array(drawn)
    middles = (np.arange(count) + 0.5) * dt
    at_steps = np.interp(middles, np.arange(count + 1) * dt, steps_done)
    waits = np.maximum(wait_of, np.concatenate([[0.0], wait_of[:-1]]))
    ttft_all, tpot_all = np.empty((classes, count)), np.empty((classes, count))
    for k in range(classes):
        busy = prompt[k] * costs.prefill_token + np.ceil(prompt[k] / settings.max_num_batched_tokens) * step_of * 0.5
        ttft_all[k] = waits + 0.5 * step_of + busy
        ends = np.interp(at_steps + output[k], steps_done, np.arange(count + 1) * dt)
        decoded = np.maximum(np.minimum(output[k], steps_done[-1] - at_steps), 1e-9)
        tpot_all[k] = (ends - middles) / decoded
    ttft_ok, tpot_ok = ttft_all <= policy.slo_ttft_s, tpot_all <= policy.slo_tpot_ms / 1e3
    total = weights.sum() * classes
    share = (lambda ok: float((ok * weights).sum() / total)) if total else (lambda ok: 1.0)
    spread = np.broadcast_to(weights, ttft_all.shape).ravel()
    every = max(1, count // 4000)
    return Result(
        float(weights.sum()),
        share(ttft_ok & tpot_ok),
        share(ttft_ok),
        share(tpot_ok),
        paid / 3600,
        peak,
        num_starts,
        percentiles(ttft_all.ravel(), spread),
        percentiles(tpot_all.ravel() * 1e3, spread),
        [(float(i * dt), int(paid_of[i])) for i in range(0, count, every)],
        num_lost,
        shares_over_time(middles, (ttft_ok & tpot_ok).mean(axis=0), weights, load.duration_s),
    )
