"""From a recording to load on a fleet: arrays of requests, or rates of classes of requests, scaled by a factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.scaling.capacity import RequestShape
from cluster.scaling.traces import Trace
from deployments.simulator.setup import SimulatorSettings

Array = NDArray[np.float64]
# Classes of lengths of requests that only a rate is known of.
_CLASSES = 64
_ORDERS = 64


@dataclass(frozen=True)
class Arrivals:
    """Load before it is scaled.

    Attributes:
        at: seconds; of requests, or of the beginnings of rates.
        prompt, output: tokens; of each request, or of classes that come equally often.
        rates: requests a second from ``at`` on; None for single requests.
        duration_s: until the last one, or the end of the last rate.
    """

    at: Array
    prompt: Array
    output: Array
    rates: Array | None
    duration_s: float

    @property
    def shape(self) -> RequestShape:
        """Of a request on average; the context is that of a decoding row."""
        output = float(self.output.mean())
        context = float(((self.prompt + self.output / 2) * self.output).sum() / self.output.sum())
        return RequestShape(float(self.prompt.mean()), output, context)

    @property
    def count(self) -> float:
        """Requests, expected ones for rates."""
        if self.rates is None:
            return float(len(self.at))
        return float((self.rates * np.diff(np.append(self.at, self.duration_s))).sum())


def arrivals_of(trace: Trace, settings: SimulatorSettings) -> Arrivals:
    """The load of a recording; lengths that do not fit an engine are cut to it."""
    if trace.rates:
        at = np.array([second for second, _ in trace.rates], float)
        rng = np.random.default_rng(settings.seed)
        # One draw from each equal part of the distribution.
        parts = np.sort(rng.standard_normal(_CLASSES * 64)).reshape(_CLASSES, 64).mean(axis=1)
        factors = np.exp(settings.length_sigma * parts)
        factors /= factors.mean()
        prompt = settings.prompt_tokens * factors
        # Long prompts have long answers as often as short ones: of some orders the one that comes nearest to that.
        orders = [rng.permutation(factors) for _ in range(_ORDERS)]
        output = settings.output_tokens * min(orders, key=lambda order: abs(float(order @ factors) - _CLASSES))
        rates = np.array([rate for _, rate in trace.rates], float)
        return Arrivals(at, *_fitted(prompt, output, settings), rates, float(at[-1] + trace.step_s))
    divisor = settings.mooncake_divisor if any(r.prefix for r in trace.requests) else 1
    at = np.array([r.at for r in trace.requests], float)
    prompt = np.maximum(1.0, np.array([r.prompt_tokens for r in trace.requests], float) // divisor)
    output = np.maximum(1.0, np.array([r.output_tokens for r in trace.requests], float) // divisor)
    at -= at.min()
    return Arrivals(at, *_fitted(prompt, output, settings), None, float(at.max()))


def _fitted(prompt: Array, output: Array, settings: SimulatorSettings) -> tuple[Array, Array]:
    prompt = np.minimum(np.round(prompt), settings.max_model_len - 1)
    return prompt, np.clip(np.round(output), 1, settings.max_model_len - prompt)


def single_requests(load: Arrivals, settings: SimulatorSettings) -> Arrivals:
    """Of rates: Poisson arrivals, each with lengths of its own. Single requests stay as they are."""
    if load.rates is None:
        return load
    rng = np.random.default_rng(settings.seed + 2)
    lasts = np.diff(np.append(load.at, load.duration_s))
    counts = rng.poisson(load.rates * lasts)
    at = np.sort(np.repeat(load.at, counts) + rng.random(int(counts.sum())) * np.repeat(lasts, counts))
    if not len(at):
        at = np.zeros(1)
    # The factors of a log-normal distribution whose mean is 1.
    sigma = settings.length_sigma
    factors = np.exp(sigma * rng.standard_normal((2, len(at))) - sigma * sigma / 2)
    prompt, output = settings.prompt_tokens * factors[0], settings.output_tokens * factors[1]
    return Arrivals(at, *_fitted(np.maximum(prompt, 1.0), output, settings), None, load.duration_s)


def scaled(load: Arrivals, factor: float, settings: SimulatorSettings) -> Arrivals:
    """``factor`` times as much load. Copies come near their original, as of other users at that time of the day; the first copy
    of each stays where it is."""
    if load.rates is not None:
        return Arrivals(load.at, load.prompt, load.output, load.rates * factor, load.duration_s)
    if factor == 1:
        return load
    rng = np.random.default_rng(settings.seed + 1)
    copies = np.floor(factor + rng.random(len(load.at))).astype(int)
    index = np.repeat(np.arange(len(load.at)), copies)
    first = np.zeros(len(index), bool)
    first[np.unique(index, return_index=True)[1]] = True
    at = load.at[index] + np.where(first, 0.0, rng.uniform(-settings.spread_s, settings.spread_s, len(index)))
    at = np.abs(at)
    at = np.where(at > load.duration_s, 2 * load.duration_s - at, at).clip(0)
    order = np.argsort(at, kind="stable")
    chosen = index[order]
    return Arrivals(at[order], load.prompt[chosen], load.output[chosen], None, load.duration_s)
