"""How many engines there are to be: a pure function of what is known, what was remembered and the settings.

The demand is the rates of requests and of their prompts' tokens, as they come, over what an engine does within the objectives;
and what it takes to work off those in the system that are too many for it. The rates are levels: slow within the noise of
independent requests, at once beyond it. Up at once for the demand and a head room; down when the largest demand of a while back
and half an engine more fit with the head room. The head room is learned: it grows with each answer that misses an objective and
shrinks while none does, sooner where few have missed of late.

Missing and stale inputs hold. Where all are, nothing changes. Where some are, what is known of the others is the least that there
is: it may start engines, and none leaves before all are known again. What is not known counts as it did when it was, so that a
gap neither makes a load look smaller afterwards nor begins the wait for a smaller one anew. What comes is known from ingresses
alone; an engine says little while it computes a long step, and is known by its last word for some seconds.
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
from cluster.scaling.inputs import EngineSample, IngressLoad

# Engines that are learned from; in a larger fleet they stand for the others.
MAX_SEEN = 8
# Arrivals are measured over about two seconds (``IngressLoad.arrivals_per_s``), and averaged for so many more that they are of
# this many requests: where few come, those of two seconds differ so much that an engine would start for nothing.
_MEASURED_S = 2.0
_RATE_REQUESTS = 150.0
_MOST_AVERAGED_S = 3.0
_FEW, _LEAST_EXPECTED = 10.0, 0.2
# The memory of a level within one standard deviation of the noise. It shrinks with the fourth power of the deviations beyond:
# two are a change within ten seconds, three within two.
_LEVEL_S = 120.0
_LEAST_MEMORY_S = 0.1
# Requests are counted; their prompts' tokens vary as much as they are on average, which the variance of a sum has twice.
_COUNT_NOISE, _TOKEN_NOISE = 1.0, math.sqrt(2.0)
# An engine's last word counts for so long: a step that is longer is a hang. Of a large fleet some word is always late.
_WORD_S = 5.0
# Fewer steps than that say little of what each part of them costs, since tokens are counted a step or two after it was planned:
# they are looked at together with those that follow, or after so long, where steps are long.
_FEW_STEPS = 40.0
_LOOK_S = 5.0
# Those in the system on average over about so long: a crowd that is gone before an engine starts needs none.
_CROWD_S = 20.0
# Those that are too many are worked off within so long, or the time of an answer if that is longer: engines for all of them at
# once would be there when short answers have long ended.
_CLEAR_S = 20.0
_SHAPE_S = 60.0
# Until lengths are known, a request is this.
_UNKNOWN = RequestShape(1000.0, 200.0, 1100.0)
_UNKNOWN_WEIGHT = 3.0
# What engines did before the first decision counts like so many requests at most.
_MOST_KNOWN = 100.0
_DEMAND_STEP_S = 5.0
# An engine that leaves too early costs its start again, and answers meanwhile.
_HOLD_STARTS = 1.0
_LEAST_HOLD_S = 15.0
# Engines. One that would nearly be needed stays: a demand that goes up and down by a little starts none.
_LEAVE_MARGIN = 0.5
# Nobody has come for so many times as long as an engine is kept: that somebody comes while it is, is improbable.
_SLEEP_HOLDS = 8.0
# To begin with: too little costs misses and the engines that work off what has gathered.
_HEAD_ROOM = 0.2
# A little is always kept: who learns that it was too little has already missed.
_HEAD_ROOM_BOUNDS = (0.02, 0.5)
# While no answer misses an objective, so much head room is given up. Misses come with jumps of the load, most of which no head
# room prevents: what is learned is about their sum over many minutes, so that it stays nearly the same meanwhile.
_GIVE_UP_PER_S = 0.004 / 60
# It grows at most so many times as fast: a start from nothing is no reason to keep more for hours.
_MOST_RISE = 40.0
# Of the answers that may miss an objective, those that are to; the rest is for jumps to come.
_BUDGET_USED = 0.90
# What a policy begins with may be far from what a load needs: at first it learns by so many times more, for about so long.
_MORE_AT_FIRST = 3.0
_FIRST_S = 600.0
# The misses of about so long are what is counted. What they lie below or above that, the head room aims above or below it,
# so many times over, since most of an hour's misses may come at once.
_BUDGET_S = 3600.0
_REPAID = 2.0
_AIM_BOUNDS = (0.4, 1.6)


class _Known(NamedTuple):
    """What was said lately enough, and whether that is all there is."""

    engines: list[EngineSample]
    ingresses: list[IngressLoad]
    all_engines: bool
    all_ingresses: bool

    @property
    def is_whole(self) -> bool:
        return self.all_engines and self.all_ingresses


class _Measured(NamedTuple):
    arrivals_per_s: float | None
    sent_tokens_per_s: float | None
    rate: float
    prompt_mean: float
    num_arrived: float
    prompt_tokens: float
    sent_tokens: float
    num_ended: float
    num_unfinished: float
    output_tokens: float
    context_tokens: float | None
    num_in_system: float
    mean_in_system: float
    kv_tokens: int
    capacity: CapacityModel
    seen: dict[str, SeenEngine]
    averaged_rate: float
    averaged_sent_rate: float
    begins_cold: bool
    arrived_at: float
    ended_at: float


class _HeadRoom(NamedTuple):
    """Share of the demand; answers that met both objectives and that missed one, as ingresses count them; answers of late, and
    misses; ingresses that say so."""

    share: float
    num_met: int
    num_missed: int
    num_recent: float
    num_recent_missed: float
    num_ingresses: int


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
    known = _known(inputs, settings)
    if not known.ingresses:
        return _held(inputs, state, settings, "hold: what comes is not known")
    num_ready = len(inputs.engines) if inputs.num_ready is None else inputs.num_ready
    current = inputs.current_target or state.target or num_ready
    elapsed = min(max(inputs.now - state.at, 0.0), 60.0) if state.at else 1.0

    is_new = not state.at or not 0 <= inputs.now - state.at <= settings.max_state_age_s
    since = inputs.now if is_new else state.since
    found = _measure(inputs, known, state, settings, elapsed, num_ready, 0.0 if is_new else inputs.now - since)
    costs = step_costs(found.capacity, settings.costs)
    shape = RequestShape(
        found.prompt_mean,
        max(1.0, _mean(found.output_tokens, found.num_ended + found.num_unfinished, _UNKNOWN.output_tokens)),
        _or(found.context_tokens, _UNKNOWN.context_tokens),
    )
    tpot_s = settings.slo_tpot_ms / 1e3
    rows_limit = most_rows(shape, inputs.max_num_seqs, found.kv_tokens, inputs.max_num_batched_tokens)
    wanted = _or(found.arrivals_per_s, 0.0) / requests_per_s(costs, shape, tpot_s, rows_limit)
    at_once = _engines_for_those_here(costs, shape, found.mean_in_system, tpot_s, rows_limit)
    wanted += max(0.0, at_once - wanted) * min(1.0, shape.output_tokens * tpot_s / _CLEAR_S)
    answered = _head_room(inputs, state, settings, elapsed)
    head_room = answered.share
    least = 0.0 if known.is_whole or not state.demands else state.demands[-1][1]
    demands = _remembered(state.demands, inputs.now, max(wanted, least), settings)

    need = _whole(wanted * (1 + head_room))
    need = max(need, 1 if found.num_in_system > 0 else 0)
    kept = max(1, _whole((max(demand for _, demand in demands) + _LEAVE_MARGIN) * (1 + head_room)))
    is_quiet = found.num_in_system <= 0 and found.rate < 1 / _sleep_s(settings)
    begun = inputs.now if known.is_whole else None
    idle_since = (begun if is_new or state.idle_since is None else state.idle_since) if is_quiet else None
    if found.num_in_system <= 0 and current <= 0:
        target, reason = 0, "asleep"
    elif known.is_whole and idle_since is not None and current <= 1 and inputs.now - idle_since >= _sleep_s(settings):
        target, reason = 0, "down: nobody has come of late"
    elif need > current:
        target, reason = need, f"up: the load needs {wanted:.2f} engines and {head_room:+.0%}"
    elif known.is_whole and kept < current and inputs.now - since >= _settle_s(settings):
        target, reason = kept, f"down: the largest demand of late fits {kept}, with {head_room:+.0%}"
    else:
        target, reason = current, "enough" if known.is_whole else "hold: some have said nothing of late"
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
        sent_tokens=found.sent_tokens,
        sent_tokens_per_s=found.sent_tokens_per_s,
        rate=found.averaged_rate,
        sent_rate=found.averaged_sent_rate,
        begins_cold=found.begins_cold,
        arrived_at=found.arrived_at,
        ended_at=found.ended_at,
        num_in_system=found.mean_in_system,
        num_ended=found.num_ended,
        output_tokens=found.output_tokens,
        context_tokens=found.context_tokens,
        head_room=head_room,
        num_met=answered.num_met,
        num_missed=answered.num_missed,
        num_recent=answered.num_recent,
        num_recent_missed=answered.num_recent_missed,
        num_ingresses=answered.num_ingresses,
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


def _settle_s(settings: PolicySettings) -> float:
    """Of a policy that has just begun, until the lengths of requests are known."""
    return max(_SHAPE_S / max(settings.cost_weight, 0.1), _hold_s(settings))


def _sleep_s(settings: PolicySettings) -> float:
    return _SLEEP_HOLDS * _hold_s(settings)


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


def _head_room(inputs: FleetInputs, state: PolicyState, settings: PolicySettings, elapsed: float) -> _HeadRoom:
    met, missed, num_ingresses = 0, 0, len(inputs.ingresses)
    for ingress in inputs.ingresses:
        counts = [count for count in (ingress.ttft, ingress.tpot) if count is not None]
        missed += sum(count.num_missed for count in counts)
        met += min((count.num_met for count in counts), default=0)
    before = _or(state.head_room, _HEAD_ROOM / max(settings.cost_weight, 0.1))
    more_met, more_missed = met - state.num_met, missed - state.num_missed
    kept = math.exp(-max(inputs.now - state.at, 0.0) / _BUDGET_S) if state.at else 1.0
    recent, recent_missed = state.num_recent * kept, state.num_recent_missed * kept
    # One that comes back after a silence counts from its start.
    is_other = num_ingresses > state.num_ingresses
    if is_other or more_met < 0 or more_missed < 0 or more_met + more_missed == 0 or not state.at:
        return _HeadRoom(before, met, missed, recent, recent_missed, num_ingresses)
    recent += more_met + more_missed
    recent_missed += more_missed
    may_miss = max(1e-4, 1 - settings.slo_share)
    spared = _BUDGET_USED - recent_missed / recent / may_miss
    known = 1 - math.exp(-max(0.0, inputs.now - state.since) / _BUDGET_S)
    fewest, most = _AIM_BOUNDS
    aim = may_miss * min(max(_BUDGET_USED + _REPAID * known * spared, fewest), most)
    share = more_missed / (more_met + more_missed)
    lowest, highest = _HEAD_ROOM_BOUNDS
    quicker = 1 + _MORE_AT_FIRST * math.exp(-max(0.0, inputs.now - state.since) / _FIRST_S)
    after = before + _GIVE_UP_PER_S * quicker * settings.cost_weight * elapsed * (min(share / aim, _MOST_RISE) - 1)
    return _HeadRoom(min(max(after, lowest), highest), met, missed, recent, recent_missed, num_ingresses)


def _engines_for_those_here(
    costs: StepCosts, shape: RequestShape, num_in_system: float, tpot_s: float, rows_limit: float
) -> float:
    """So many that those in the system, spread evenly, decode within the objective."""
    share = useful_share(costs, shape, tpot_s, rows_limit)
    row = request_work_s(costs, shape) / shape.output_tokens
    rows = costs.step * share / (1 - share) / row if row > 0 and share < 1 else math.inf
    return num_in_system / rows


def _known(inputs: FleetInputs, settings: PolicySettings) -> _Known:
    engines = [e for e in inputs.engines if 0 <= e.age_s <= max(settings.max_age_s, _WORD_S)]
    ingresses = [i for i in inputs.ingresses if inputs.now - i.sampled_at <= settings.max_age_s]
    all_engines = len(engines) == len(inputs.engines) and not inputs.num_unknown
    return _Known(engines, ingresses, all_engines, len(ingresses) == len(inputs.ingresses))


def _measure(
    inputs: FleetInputs,
    known: _Known,
    state: PolicyState,
    settings: PolicySettings,
    elapsed: float,
    num_ready: int,
    age_s: float,
) -> _Measured:
    """``age_s``: for how long decisions have been made."""
    engines, ingresses = known.engines, known.ingresses
    sampled = engines[:MAX_SEEN]
    scale = max(num_ready, len(engines)) / len(engines) if engines and known.all_engines else 1.0
    capacity = state.capacity.get(inputs.kind, CapacityModel())
    seen: dict[str, SeenEngine] = {}
    prompt_tokens = sent_tokens = generated = arrived = ended = 0.0
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
            load.num_prompt_tokens,
            load.num_steps,
            load.num_prefill_tokens,
        )
        before = state.seen.get(engine.engine_id)
        if before is not None and now.sampled_at - before.sampled_at < 0.2:
            seen[engine.engine_id] = before
            continue
        seen[engine.engine_id] = now
        if before is None and not age_s:
            # To begin with, an engine is known by all that it has done.
            before = now._replace(
                num_arrived=0,
                num_ended=0,
                num_prompt_tokens=0,
                num_generated_tokens=0,
                num_sent_tokens=0,
                num_running=0,
            )
        if before is None or now.num_arrived < before.num_arrived:
            continue
        lasted = now.sampled_at - before.sampled_at
        prompts = max(0, now.num_prompt_tokens - before.num_prompt_tokens)
        tokens = max(0, now.num_generated_tokens - before.num_generated_tokens)
        steps = max(0, now.num_steps - before.num_steps)
        computes = min(now.num_running, before.num_running) >= 2
        # An engine that stood still in between would look slow.
        if computes and 0 < lasted < _LOOK_S and steps < _FEW_STEPS:
            seen[engine.engine_id] = before
            continue
        arrived += now.num_arrived - before.num_arrived
        ended += max(0, now.num_ended - before.num_ended)
        prompt_tokens += prompts
        sent_tokens += max(prompts, now.num_sent_tokens - before.num_sent_tokens)
        generated += tokens
        if computes and steps and lasted < 20:
            context = (now.running_tokens + before.running_tokens) / 2
            prefilled = max(0, now.num_prefill_tokens - before.num_prefill_tokens)
            seen_step = Observation(lasted / steps, prefilled / steps, tokens / steps, context)
            capacity = learned(capacity, settings.costs, seen_step)

    # Where engines have done much before the first decision, those who run say nothing of lengths beside it.
    begins_cold = state.begins_cold if age_s else arrived <= _MOST_KNOWN and not state.num_ended
    if not age_s and arrived > _MOST_KNOWN:
        few = _MOST_KNOWN / arrived
        arrived, ended, prompt_tokens = arrived * few, ended * few, prompt_tokens * few
        sent_tokens, generated = sent_tokens * few, generated * few
    num_in_system = sum(e.load.num_running + e.load.num_waiting for e in engines) * scale
    num_in_system += sum(max(0, i.num_held) for i in ingresses)
    rate = sum(max(0.0, i.arrivals_per_s) for i in ingresses)
    sent_rate = sum(max(0.0, i.prompt_tokens_per_s) for i in ingresses)
    known_rate, known_in_system = rate, num_in_system
    if not known.all_ingresses:
        rate, sent_rate = max(rate, _or(state.arrivals_per_s, 0.0)), max(sent_rate, _or(state.sent_tokens_per_s, 0.0))
    if not known.is_whole:
        num_in_system = max(num_in_system, _or(state.num_in_system, 0.0))
    weight = 1 - math.exp(-elapsed / _SHAPE_S)
    context_mean = state.context_tokens
    num_running = sum(e.load.num_running for e in sampled)
    if num_running:
        context_mean = _towards(context_mean, sum(e.load.running_tokens for e in sampled) / num_running, weight)
    memory = max((e.load.kv_tokens for e in sampled), default=0)
    # While nothing comes, what came last is what is known of it; whiles between two looks count as they are.
    kept_arrived = _kept(inputs.now, state.arrived_at) if arrived else 1.0
    kept_ended = _kept(inputs.now, state.ended_at) if ended else 1.0
    num_arrived = state.num_arrived * kept_arrived + arrived
    computed = state.prompt_tokens * kept_arrived + prompt_tokens
    sent = state.sent_tokens * kept_arrived + sent_tokens
    averaged_s = _averaged_s(max(rate, _or(state.arrivals_per_s, 0.0)))
    rate, sent_rate = (
        _averaged(before, now, averaged_s, elapsed)
        for before, now in ((state.rate, rate), (state.sent_rate, sent_rate))
    )
    # A rate that is averaged so varies as one over twice that time.
    expected = 2 * (_MEASURED_S + averaged_s) * _or(state.arrivals_per_s, 0.0)
    level = _level(state.arrivals_per_s, rate, expected, elapsed, _COUNT_NOISE)
    prompt_mean, sent_level = _mean(computed, num_arrived, _UNKNOWN.prompt_tokens), state.sent_tokens_per_s
    if level and rate and 0 < sent_rate < math.inf:
        # Prompts are known when they come, long before an engine has computed them; of these the cache has a part.
        sent_level = _or(_level(sent_level, sent_rate, expected, elapsed, _TOKEN_NOISE), sent_rate)
        unknown = _UNKNOWN_WEIGHT * _UNKNOWN.prompt_tokens
        prompt_mean = sent_level / level * min(1.0, (computed + unknown) / (sent + unknown))
    return _Measured(
        level,
        sent_level,
        known_rate,
        prompt_mean,
        num_arrived,
        computed,
        sent,
        state.num_ended * kept_ended + ended,
        # Of those who run about half is done. Later on as much was done before as is left.
        max(0.0, 1 - age_s / _SHAPE_S) * num_running / 2 if begins_cold else 0.0,
        state.output_tokens * kept_ended + generated,
        context_mean,
        known_in_system,
        _towards(state.num_in_system, num_in_system, 1 - math.exp(-elapsed / _CROWD_S)),
        memory,
        capacity,
        seen,
        rate,
        sent_rate,
        begins_cold,
        inputs.now if arrived else state.arrived_at,
        inputs.now if ended else state.ended_at,
    )


def _kept(now: float, counted_at: float) -> float:
    """Of what is known of lengths, since requests were counted last."""
    return math.exp(-min(max(0.0, now - counted_at), _LOOK_S) / _SHAPE_S)


def _averaged_s(requests_per_s: float) -> float:
    """How much longer than it is measured a rate is averaged."""
    if not 0 < requests_per_s < math.inf:
        return _MOST_AVERAGED_S
    return min(max(_RATE_REQUESTS / requests_per_s - _MEASURED_S, 0.0), _MOST_AVERAGED_S)


def _averaged(before: float | None, now: float, averaged_s: float, elapsed: float) -> float:
    if before is None or not averaged_s or not math.isfinite(before + now):
        return now
    return _towards(before, now, 1 - math.exp(-elapsed / averaged_s))


def _towards(value: float | None, seen: float, weight: float) -> float:
    return seen if value is None else value + weight * (seen - value)


def _level(level: float | None, rate: float | None, expected: float, elapsed: float, noise: float) -> float | None:
    """The level of a noisy rate, of requests or of their tokens: slow within the noise of independent ones, at once beyond it.

    Args:
        expected: how many requests the rate is of.
        noise: standard deviation of what a request adds to the rate, over the mean of that.
    """
    if rate is None or not math.isfinite(rate):
        return level
    if level is None:
        return rate
    rate, expected = max(rate, 0.0), max(expected, _LEAST_EXPECTED)
    # Of a level of nothing the noise is that of the fewest requests.
    change = (rate - level) / max(level, 0.05 if noise == _COUNT_NOISE else 1e-9)
    deviations = abs(change) * math.sqrt(expected) / noise
    if change < 0 and expected < _FEW:
        # A count of few is no normal one; its root deviates by a half, so that none where some were expected is a change, too.
        deviations = 2 * (math.sqrt(expected) - math.sqrt(expected * rate / level))
    memory = max(_LEVEL_S / max(1.0, deviations) ** 4, _LEAST_MEMORY_S)
    return level + (1 - math.exp(-elapsed / memory)) * (rate - level)
