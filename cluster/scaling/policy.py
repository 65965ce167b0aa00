"""How many engines there are to be: a pure function of what is known, what was remembered and the settings.

The demand is the rate of arrivals times the work of a request over what an engine does within the objectives; or, if that is
more, the engines that what is in the system now needs. Up at once for that and a head room; down when the largest demand of a
while back fits with the head room. The head room is learned: it grows with each answer that misses an objective and shrinks while
none does. Missing and stale inputs hold.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from cluster.scaling.capacity import (
    CapacityModel,
    Observation,
    RequestShape,
    StepCosts,
    learned,
    most_rows,
    request_work_s,
    requests_per_s,
    step_costs,
    useful_share,
)
from cluster.scaling.fleet import Decision, FleetInputs, PolicySettings, PolicyState, SeenEngine
from cluster.scaling.inputs import EngineSample

# Engines that are learned from; in a larger fleet they stand for the others.
MAX_SEEN = 8
# Arrivals are measured over about ten seconds (``IngressLoad.arrivals_per_s``): the variance of a Poisson rate over them.
_RATE_WINDOW_S = 10.0
# So many standard deviations are a change of the load, not noise.
_CHANGE = 3.0
_FEW = 10.0
_LEVEL_S = 45.0
_FALL_S = 10.0
_SHAPE_S = 60.0
# Until lengths are known, a request is this.
_UNKNOWN = RequestShape(1000.0, 200.0, 1100.0)
_UNKNOWN_WEIGHT = 3.0
_DEMAND_STEP_S = 5.0
_TREND_S = 60.0
_MOST_GROWTH = 1.15
# An engine that leaves too early costs its start again, and answers meanwhile.
_HOLD_STARTS = 4.0
_LEAST_HOLD_S = 60.0
# Nobody has come for so many times as long as an engine is kept: that somebody comes while it is, is improbable.
_SLEEP_HOLDS = 2.0
_HEAD_ROOM = 0.06
# A little is always kept: who learns that it was too little has already missed.
_HEAD_ROOM_BOUNDS = (0.02, 0.5)
# While no answer misses an objective, so much head room is given up: learning from scratch takes minutes, not hours.
_GIVE_UP_PER_S = 0.006 / 60
# It grows at most so many times as fast: a start from nothing is no reason to keep more for hours.
_MOST_RISE = 40.0
# Of the answers that may miss an objective, those that the head room aims at.
_BUDGET_USED = 0.3


class _Measured(NamedTuple):
    arrivals_per_s: float | None
    rate: float | None
    num_arrived: float
    prompt_tokens: float
    num_ended: float
    output_tokens: float
    context_tokens: float | None
    num_in_system: float
    kv_tokens: int
    capacity: CapacityModel
    seen: dict[str, SeenEngine]


def decide(inputs: FleetInputs, state: PolicyState, settings: PolicySettings) -> Decision:
    """The next target. Never raises: inputs that make no sense hold the target, and the reason says so."""
    try:
        return _decided(inputs, state, settings)
    except Exception as error:
        return _held(inputs, state, settings, f"hold: inputs make no sense ({type(error).__name__})")


def _held(inputs: FleetInputs, state: PolicyState, settings: PolicySettings, reason: str) -> Decision:
    known = inputs.current_target if _is_count(inputs.current_target) else 0
    if known <= 0 and inputs.now - state.at <= settings.max_state_age_s:
        known = state.target
    if known <= 0:
        known = inputs.num_ready if _is_count(inputs.num_ready) and inputs.num_ready else len(inputs.engines)
    return Decision(_bounded(known, settings), reason, state)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _bounded(target: int, settings: PolicySettings) -> int:
    lowest = max(0, settings.min_replicas)
    return min(max(target, lowest), max(settings.max_replicas, lowest))


def _decided(inputs: FleetInputs, state: PolicyState, settings: PolicySettings) -> Decision:
    if not math.isfinite(inputs.now):
        return _held(inputs, state, settings, "hold: no time")
    fresh = [e for e in inputs.engines if 0 <= e.age_s <= settings.max_age_s]
    ingresses = [i for i in inputs.ingresses if inputs.now - i.sampled_at <= settings.max_age_s]
    if not fresh and not ingresses:
        return _held(inputs, state, settings, "hold: nothing is known")
    if inputs.engines and not fresh:
        return _held(inputs, state, settings, "hold: what engines said is old")
    num_ready = len(inputs.engines) if inputs.num_ready is None else inputs.num_ready
    current = inputs.current_target or state.target or num_ready
    elapsed = min(max(inputs.now - state.at, 0.0), 60.0) if state.at else 1.0

    found = _measure(inputs, fresh, state, settings, elapsed, num_ready)
    costs = step_costs(found.capacity, settings.costs)
    shape = RequestShape(
        _mean(found.prompt_tokens, found.num_arrived, _UNKNOWN.prompt_tokens),
        max(1.0, _mean(found.output_tokens, found.num_ended, _UNKNOWN.output_tokens)),
        _or(found.context_tokens, _UNKNOWN.context_tokens),
    )
    tpot_s = settings.slo_tpot_ms / 1e3
    rows_limit = most_rows(shape, inputs.max_num_seqs, found.kv_tokens, inputs.max_num_batched_tokens)
    wanted = _or(found.arrivals_per_s, 0.0) / requests_per_s(costs, shape, tpot_s, rows_limit)
    wanted = max(wanted, _engines_for_those_here(costs, shape, found.num_in_system, tpot_s, rows_limit))
    head_room, num_met, num_missed = _head_room(inputs, state, settings, elapsed)
    demands = _remembered(state.demands, inputs.now, wanted, settings)

    is_new = not state.at or not 0 <= inputs.now - state.at <= settings.max_state_age_s
    since = inputs.now if is_new else state.since
    need = _whole(max(wanted, _forecast(demands, inputs.now, settings)) * (1 + head_room))
    need = max(need, 1 if found.num_in_system > 0 else 0)
    kept = max(1, _whole(max(demand for _, demand in demands) * (1 + head_room)))
    is_quiet = bool(ingresses) and found.num_in_system <= 0 and _or(found.rate, 0.0) < 0.5 / _hold_s(settings)
    idle_since = (inputs.now if is_new or state.idle_since is None else state.idle_since) if is_quiet else None
    if found.num_in_system <= 0 and current <= 0:
        target, reason = 0, "asleep"
    elif idle_since is not None and current <= 1 and inputs.now - idle_since >= _SLEEP_HOLDS * _hold_s(settings):
        target, reason = 0, "down: nobody has come of late"
    elif need > current:
        target, reason = need, f"up: the load needs {wanted:.2f} engines and {head_room:+.0%}"
    elif kept < current and inputs.now - since >= _hold_s(settings):
        target, reason = kept, f"down: the largest demand of late fits {kept}, with {head_room:+.0%}"
    else:
        target, reason = current, "enough"
    bounded = _bounded(target, settings)
    if bounded == current != target:
        reason = f"hold at the bound: {reason.partition(': ')[2]}"
    target = bounded
    remembered = replace(
        state,
        at=inputs.now,
        target=target,
        arrivals_per_s=found.arrivals_per_s,
        since=since,
        idle_since=idle_since,
        num_arrived=found.num_arrived,
        prompt_tokens=found.prompt_tokens,
        num_ended=found.num_ended,
        output_tokens=found.output_tokens,
        context_tokens=found.context_tokens,
        head_room=head_room,
        num_met=num_met,
        num_missed=num_missed,
        demands=demands,
        seen=found.seen,
        capacity={**state.capacity, inputs.kind: found.capacity},
    )
    return Decision(target, reason, remembered)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _mean(total: float, count: float, unknown: float) -> float:
    return (total + _UNKNOWN_WEIGHT * unknown) / (count + _UNKNOWN_WEIGHT)


def _whole(engines: float) -> int:
    """A fraction of a thousandth is no engine."""
    return math.ceil(min(engines, 1e9) - 1e-3)


def _hold_s(settings: PolicySettings) -> float:
    return max(_LEAST_HOLD_S, _HOLD_STARTS * settings.start_s) / max(settings.cost_weight, 0.1)


def _remembered(
    demands: tuple[tuple[float, float], ...], now: float, wanted: float, settings: PolicySettings
) -> tuple[tuple[float, float], ...]:
    """One value, the largest, for each few seconds of the while that an engine is kept for."""
    since = now - _hold_s(settings)
    kept = tuple(demand for demand in demands if since <= demand[0] <= now)
    if kept and now - kept[-1][0] < _DEMAND_STEP_S:
        begun, value = kept[-1]
        return (*kept[:-1], (begun, max(value, wanted)))
    return (*kept, (now, wanted))


def _forecast(demands: tuple[tuple[float, float], ...], now: float, settings: PolicySettings) -> float:
    """The demand when an engine that is started now serves, on the line through the last minute's."""
    points = [(at - now, demand) for at, demand in demands if at > now - _TREND_S]
    if len(points) < 6:
        return 0.0
    points[-1] = (0.0, points[-1][1])
    mean_at = sum(at for at, _ in points) / len(points)
    mean = sum(demand for _, demand in points) / len(points)
    spread = sum((at - mean_at) ** 2 for at, _ in points) or 1.0
    slope = sum((at - mean_at) * (demand - mean) for at, demand in points) / spread
    # A line is a guess: it may ask for a little more than is wanted now, not for twice as much.
    return min(mean + slope * (settings.start_s - mean_at), _MOST_GROWTH * points[-1][1])


def _head_room(
    inputs: FleetInputs, state: PolicyState, settings: PolicySettings, elapsed: float
) -> tuple[float, int, int]:
    """(head room, answers that met both objectives, answers that missed one), as ingresses count them."""
    met, missed = 0, 0
    for ingress in inputs.ingresses:
        counts = [count for count in (ingress.ttft, ingress.tpot) if count is not None]
        missed += sum(count.num_missed for count in counts)
        met += min((count.num_met for count in counts), default=0)
    before = _or(state.head_room, _HEAD_ROOM / max(settings.cost_weight, 0.1))
    more_met, more_missed = met - state.num_met, missed - state.num_missed
    if more_met < 0 or more_missed < 0 or more_met + more_missed == 0 or not state.at:
        return before, met, missed
    allowed = max(1e-4, (1 - settings.slo_share) * _BUDGET_USED)
    share = more_missed / (more_met + more_missed)
    lowest, highest = _HEAD_ROOM_BOUNDS
    after = before + _GIVE_UP_PER_S * settings.cost_weight * elapsed * (min(share / allowed, _MOST_RISE) - 1)
    return min(max(after, lowest), highest), met, missed


def _engines_for_those_here(
    costs: StepCosts, shape: RequestShape, num_in_system: float, tpot_s: float, rows_limit: float
) -> float:
    """So many that what runs and waits now, spread evenly, decodes within the objective."""
    share = useful_share(costs, shape, tpot_s, rows_limit)
    row = request_work_s(costs, shape) / shape.output_tokens
    rows = costs.step * share / (1 - share) / row if row > 0 and share < 1 else math.inf
    return num_in_system / rows


def _measure(
    inputs: FleetInputs,
    fresh: list[EngineSample],
    state: PolicyState,
    settings: PolicySettings,
    elapsed: float,
    num_ready: int,
) -> _Measured:
    sampled = fresh[:MAX_SEEN]
    scale = max(num_ready, len(fresh)) / len(fresh) if fresh else 1.0
    capacity = state.capacity.get(inputs.kind, CapacityModel())
    seen: dict[str, SeenEngine] = {}
    prompt_tokens = generated = arrived = ended = seconds = 0.0
    for engine in sampled:
        load = engine.load
        now = SeenEngine(
            inputs.now - engine.age_s,
            load.num_arrived,
            load.num_ended,
            load.num_prompt_tokens - load.num_cached_prompt_tokens,
            load.num_generated_tokens,
            load.num_running,
            load.running_tokens,
        )
        before = state.seen.get(engine.engine_id)
        if before is not None and now.sampled_at - before.sampled_at < 0.2:
            seen[engine.engine_id] = before
            continue
        seen[engine.engine_id] = now
        if before is None or now.num_arrived < before.num_arrived:
            continue
        lasted = now.sampled_at - before.sampled_at
        prompts = max(0, now.num_prompt_tokens - before.num_prompt_tokens)
        tokens = max(0, now.num_generated_tokens - before.num_generated_tokens)
        arrived += now.num_arrived - before.num_arrived
        ended += max(0, now.num_ended - before.num_ended)
        prompt_tokens += prompts
        generated += tokens
        seconds += lasted
        rows = (now.num_running + before.num_running) / 2
        if min(now.num_running, before.num_running) >= 2 and tokens and lasted < 20:
            steps = tokens / rows
            context = (now.running_tokens + before.running_tokens) / 2
            seen_step = Observation(lasted / steps, prompts / steps, rows, context)
            capacity = learned(capacity, settings.costs, seen_step)

    ingresses = [i for i in inputs.ingresses if inputs.now - i.sampled_at <= settings.max_age_s]
    running = sum(e.load.num_running + e.load.num_waiting for e in fresh) * scale
    held = sum(max(0, i.num_held) for i in ingresses)
    if ingresses:
        rate: float | None = sum(max(0.0, i.arrivals_per_s) for i in ingresses)
    else:
        rate = arrived / seconds * num_ready if seconds else None
    kept = math.exp(-elapsed / _SHAPE_S)
    weight = 1 - kept
    context_mean = state.context_tokens
    num_running = sum(e.load.num_running for e in sampled)
    if num_running:
        context_mean = _towards(context_mean, sum(e.load.running_tokens for e in sampled) / num_running, weight)
    memory = max((e.load.kv_tokens for e in sampled), default=0)
    return _Measured(
        _level(state.arrivals_per_s, rate, elapsed),
        rate,
        # While nothing comes, what came last is what is known of it.
        state.num_arrived * (kept if arrived else 1.0) + arrived,
        state.prompt_tokens * (kept if arrived else 1.0) + prompt_tokens,
        state.num_ended * (kept if ended else 1.0) + ended,
        state.output_tokens * (kept if ended else 1.0) + generated,
        context_mean,
        running + held,
        memory,
        capacity,
        seen,
    )


def _towards(value: float | None, seen: float, weight: float) -> float:
    return seen if value is None else value + weight * (seen - value)


def _level(level: float | None, rate: float | None, elapsed: float) -> float | None:
    """The level of a noisy rate: slow within the noise of independent arrivals, at once to a rate above it."""
    if rate is None or not math.isfinite(rate):
        return level
    if level is None:
        return rate
    noise = _CHANGE * math.sqrt(max(level, 0.05) / _RATE_WINDOW_S)
    if rate > level + noise:
        return rate
    counted, expected = max(rate, 0.0) * _RATE_WINDOW_S, level * _RATE_WINDOW_S
    if expected < _FEW:
        # A count of few is no normal one; its root deviates by a half, so that none where some were expected is a change, too.
        has_fallen = 2 * (math.sqrt(expected) - math.sqrt(counted)) > _CHANGE
    else:
        has_fallen = rate < level - noise
    memory = _FALL_S if has_fallen else _LEVEL_S
    return level + (1 - math.exp(-elapsed / memory)) * (rate - level)
