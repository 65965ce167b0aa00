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
from deployments.simulator.fewest_steps import Totals, fewest_steps
from deployments.simulator.setup import SimulatorSettings

_BIN_S = 10.0
# Of the share that may miss: so that one request in ten is one although 10 * (1 - 0.9) is less than 1.
_ROUNDING = 1e-9


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
    left = int(len(decoded) * may_miss + _ROUNDING) if load.rates is None else len(decoded) * may_miss
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
