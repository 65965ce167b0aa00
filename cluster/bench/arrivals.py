"""When the requests of an open loop are due."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator


def gaps(rng: random.Random, burstiness: float) -> Iterator[float]:
    """Gaps with mean 1 between arrivals: gamma distributed, as vLLM's; 1 is Poisson, less comes in bursts, more evenly."""
    while True:
        yield rng.gammavariate(burstiness, 1 / burstiness)


def at_rate(rate: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Seconds from the beginning, for ``rate`` requests a second."""
    return itertools.accumulate(gap / rate for gap in gaps(rng, burstiness))


def at_rates(
    steps: Iterable[tuple[float, float]], last_step_s: float, burstiness: float, rng: random.Random
) -> Iterator[float]:
    """Seconds from the beginning, where the rate changes.

    Args:
        steps: (second, requests a second from then on), in order of time.
        last_step_s: how long the last one lasts.
    """
    steps = list(steps)
    ends = [begin for begin, _ in steps[1:]] + [steps[-1][0] + last_step_s if steps else 0.0]
    units = gaps(rng, burstiness)
    left = next(units)
    for (begin, rate), end in zip(steps, ends):
        now = begin
        # ``left`` is in units of requests: it goes on in the next step at that step's rate.
        while rate > 0 and now + left / rate < end:
            now += left / rate
            yield now
            left = next(units)
        left -= (end - now) * rate
