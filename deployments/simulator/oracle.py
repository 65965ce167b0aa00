"""What a scaler that knows the future would pay at least: a fluid relaxation with start times.

The work is what the requests cost. Beside it every engine pays for its steps, and no schedule has fewer of them than
``fewest_steps`` says, whatever the mix of requests at a time; the share of requests that may miss their objectives, those with
the longest answers, need none. Engines are not whole, a request may be split, and nothing is lost at random. Starting one
engine costs what it is paid for until it serves, so a valley is slept through only if it is longer than that.

That the sum over the work is a bound is proved there (``fewest_steps``), and it is told apart (``Bound.proved_hours``). The
engines that start are those of the demand over time, where prompts are computed when they come and answers at the slowest pace
that is allowed: a fleet that moves work within the objectives may start fewer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cluster.scaling.capacity import request_work_s
from deployments.simulator.arrivals import Array, Arrivals
from deployments.simulator.setup import SimulatorSettings

_BIN_S = 10.0
_ROUNDS = 60


class Bound(NamedTuple):
    """Engine-hours, the mean of engines, the engines wanted in each bin of ``bin_s`` seconds, and of the engine-hours those
    that are proved: of the work and its steps, or of the fewest engines that there may be."""

    engine_hours: float
    mean_engines: float
    demand: Array
    bin_s: float
    proved_hours: float


def useful_share(load: Arrivals, settings: SimulatorSettings) -> float:
    """At most this share of an engine's time goes into the requests of a load."""
    costs = settings.costs
    decoded = load.output - 1
    context = decoded * (load.prompt + load.output / 2)
    work = float((load.prompt * costs.prefill_token + decoded * costs.decode_row + context * costs.context_token).sum())
    may_miss = 1 - settings.policy.slo_share
    # Classes of rates come equally often, and each is many requests.
    left = int(len(decoded) * may_miss) if load.rates is None else len(decoded) * may_miss
    totals = Totals(float(load.prompt.sum()), _without_largest(decoded, left), _without_largest(context, left))
    return work / (work + costs.step * fewest_steps(totals, settings)) if work > 0 else 1.0


def _without_largest(values: Array, count: float) -> float:
    """Their sum, less the ``count`` largest, of the last one only a part."""
    present = np.clip(np.arange(len(values), 0, -1) - count, 0.0, 1.0)
    return float(np.sort(values) @ present)


def demand_of(load: Arrivals, settings: SimulatorSettings, bin_s: float = _BIN_S) -> Array:
    """Engines wanted in each bin."""
    costs, shape = settings.costs, load.shape
    tpot_s = settings.policy.slo_tpot_ms / 1e3
    share = useful_share(load, settings)
    bins = max(1, int(np.ceil(load.duration_s / bin_s)))
    if load.rates is not None:
        ends = np.append(load.at, load.duration_s)
        edges = np.arange(bins + 1) * bin_s
        total = np.concatenate([[0.0], np.cumsum(load.rates * np.diff(ends))])
        return np.diff(np.interp(edges, ends, total)) / bin_s * request_work_s(costs, shape) / share
    context = load.prompt + load.output / 2
    decode = (load.output - 1) * (costs.decode_row + costs.context_token * context)
    lasts = np.maximum(load.output * tpot_s, 1e-3)
    # The longest answers end after the last arrival; their work counts where it is done.
    bins = max(1, int(np.ceil((load.at + lasts).max() / bin_s)) + 1)
    work = np.bincount((load.at // bin_s).astype(int), load.prompt * costs.prefill_token, bins).astype(float)
    # Spread evenly from arrival to end: cumulated, each answer is a ramp.
    edges = np.arange(bins + 1) * bin_s
    order_a, order_e = np.sort(load.at), load.at + lasts
    rate = decode / lasts
    by_begin = np.argsort(load.at, kind="stable")
    by_end = np.argsort(order_e, kind="stable")

    def ramp(times: Array, slopes: Array) -> Array:
        slope = np.concatenate([[0.0], np.cumsum(slopes)])
        moment = np.concatenate([[0.0], np.cumsum(slopes * times)])
        count = np.searchsorted(times, edges, side="right")
        return edges * slope[count] - moment[count]

    done = ramp(order_a, rate[by_begin]) - ramp(order_e[by_end], rate[by_end])
    return (work + np.diff(done)) / bin_s / share


def lower_bound(load: Arrivals, settings: SimulatorSettings, min_engines: float | None = None) -> Bound:
    """The fewest engine-hours."""
    least = settings.policy.min_replicas if min_engines is None else min_engines
    demand = demand_of(load, settings)
    held = demand.copy()
    # Nobody pays for the fewest engines once all requests have come and been answered.
    whole = int(load.duration_s / _BIN_S)
    held[:whole] = np.maximum(held[:whole], least)
    start_s = settings.mean_start_s
    paid = held.sum() * _BIN_S + start_s * _starts(_calm(held))
    proved = max(demand.sum() * _BIN_S, least * load.duration_s)
    return Bound(paid / 3600, paid / (len(held) * _BIN_S), demand, _BIN_S, float(proved) / 3600)


def _calm(demand: Array) -> Array:
    """The path that changes least within one engine above the demand: less than one engine is no reason to start one."""
    path = np.empty_like(demand)
    level = demand[0]
    for i, wanted in enumerate(demand.tolist()):
        level = min(max(level, wanted), wanted + 1.0)
        path[i] = level
    return path


def _starts(path: Array) -> float:
    """Engines that start, without those for a valley of a single bin, which costs less asleep than a start."""
    if len(path) > 2:
        path = path.copy()
        path[1:-1] = np.maximum(path[1:-1], np.minimum(path[:-2], path[2:]))
    return float(np.maximum(np.diff(path), 0).sum())


def factor_for(load: Arrivals, settings: SimulatorSettings, engines: float) -> float:
    """By which the load is scaled so that the bound's mean is ``engines``."""
    mean = lower_bound(load, settings, 0.0).mean_engines
    return engines / mean if mean > 0 else 1.0


class Totals(NamedTuple):
    """Of a load, or of a part: tokens of prompts; tokens that rows decode; tokens of context that these look back at."""

    prompt: float
    decoded: float
    context: float


def fewest_steps(totals: Totals, settings: SimulatorSettings) -> float:
    """Steps, not whole ones, without which no schedule can compute ``totals`` within the objective for a token.

    An engine's time is ``costs.step`` for each step plus the work in it, and the work is given. A step has ``p`` tokens of
    prompts, ``r`` rows and ``k`` tokens of context, within slots, budget and memory, and takes ``t(p, r, k)``. Each answer
    that meets its objective has steps of at most ``T`` on average; summed over answers, ``r (t - T)`` over all steps is at
    most 0. For any multipliers ``a, b, c, m`` that are not negative the number of steps is therefore at least

        (a P + b D + c K) / max over steps of (a p + b r + c k - m r (t(p, r, k) - T))

    with the sums ``P, D, K`` of the load (weak duality). The denominator is exact: for a given ``r`` it is linear in ``p``
    and ``k``, and at their ends a parabola in ``r``. It knows nothing of when requests come or of which kinds are together.
    The search for good multipliers may miss the best ones, which makes the bound lower and never wrong.
    """
    budget, slots = settings.max_num_batched_tokens, settings.max_num_seqs
    most = totals.prompt / budget, totals.decoded / slots, totals.context / settings.kv_tokens
    # In units of what fills a step, so that a search by factors begins near its end.
    best = [1.0, 1.0, 1.0, 1.0]
    found = _steps_bound(best, totals, settings)
    stride = 4.0
    for _ in range(_ROUNDS):
        has_risen = False
        for i in range(4):
            for factor in (stride, 1 / stride, 0.0):
                tried = list(best)
                tried[i] = best[i] * factor if best[i] else stride - 1
                value = _steps_bound(tried, totals, settings)
                if value > found:
                    best, found, has_risen = tried, value, True
        if not has_risen:
            stride = stride**0.5
    return max(found, *most)


def _steps_bound(multipliers: list[float], totals: Totals, settings: SimulatorSettings) -> float:
    budget, slots = settings.max_num_batched_tokens, settings.max_num_seqs
    a, b, c = multipliers[0] / budget, multipliers[1] / slots, multipliers[2] / settings.kv_tokens
    tpot_s = settings.policy.slo_tpot_ms / 1e3
    m = multipliers[3] / slots / tpot_s
    fullest = _fullest(a, b, c, m, settings)
    return (a * totals.prompt + b * totals.decoded + c * totals.context) / fullest if fullest > 0 else 0.0


def _fullest(a: float, b: float, c: float, m: float, settings: SimulatorSettings) -> float:
    """The largest ``a p + b r + c k - m r (t - T)`` of any step."""
    costs, budget, slots = (
        settings.costs,
        settings.max_num_batched_tokens,
        min(settings.max_num_seqs, settings.max_num_batched_tokens),
    )
    tpot_s = settings.policy.slo_tpot_ms / 1e3
    largest = 0.0
    for fills_budget in (0, 1):
        for k in (0.0, float(settings.kv_tokens)):
            # p = fills_budget (budget - r); then the value is constant + linear r - square r².
            constant = a * budget * fills_budget + c * k
            prompt_s = costs.prefill_token * budget * fills_budget
            linear = b - a * fills_budget - m * (costs.step + prompt_s + costs.context_token * k - tpot_s)
            square = m * (costs.decode_row - costs.prefill_token * fills_budget)
            rows = [0.0, float(slots)]
            if square > 0:
                rows.append(min(max(linear / (2 * square), 0.0), float(slots)))
            largest = max(largest, *(constant + linear * r - square * r * r for r in rows))
    return largest
