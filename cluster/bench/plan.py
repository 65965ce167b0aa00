"""Makes the requests of a load from what was asked for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cluster.bench.arrivals import at_rate, at_rates
from cluster.bench.lengths import Lengths
from cluster.bench.load import Request
from cluster.errors import BiremeError
from cluster.scaling.traces import Trace

# No run sends more than this; a rate that wants more is a mistake.
_MOST_REQUESTS = 2_000_000


@dataclass(frozen=True)
class Shape:
    """What the requests of a load are like.

    Attributes:
        count: how many; None: until the run ends, or all of a recording.
        rate: requests a second; None: closed loop.
        prefix_tokens, num_prefixes: each prompt begins with one of so many prefixes, before its own tokens.
        trace: recorded load, in place of ``rate``, and of the lengths where it has them.
        speed: so many times faster than recorded.
        share: so much of the recorded requests, or rates.
        length_scale: recorded lengths times this.
    """

    seed: int
    input_lengths: Lengths
    output_lengths: Lengths
    count: int | None = None
    rate: float | None = None
    burstiness: float = 1.0
    prefix_tokens: int = 0
    num_prefixes: int = 1
    trace: Trace | None = None
    speed: float = 1.0
    share: float = 1.0
    length_scale: float = 1.0


def make_requests(shape: Shape, max_seconds: float, closed_count: int) -> tuple[Request, ...]:
    """The requests, in the order in which they are due.

    Args:
        max_seconds: nothing is due later.
        closed_count: how many for a closed loop that ends by time.
    Raises:
        BiremeError: there is none in that time, or there are far too many.
    """
    if shape.count is None and _expected(shape, max_seconds) > _MOST_REQUESTS:
        raise BiremeError(
            f"more than {_MOST_REQUESTS:,} requests are due; lower the rate, --num-prompts or --max-seconds",
            "--num-prompts",
        )
    rng = random.Random(f"plan {shape.seed}")
    if shape.trace is not None and shape.trace.requests:
        requests = _recorded(shape, shape.trace, rng)
    else:
        requests = _drawn(shape, rng, closed_count)
    if shape.rate is not None or shape.trace is not None:
        requests = itertools.takewhile(lambda request: (request.due_s or 0.0) < max_seconds, requests)
    found = tuple(itertools.islice(requests, shape.count))
    if not found:
        raise BiremeError(f"no request is due within --max-seconds {max_seconds:g}", "--max-seconds")
    return found


def _expected(shape: Shape, max_seconds: float) -> float:
    """About how many requests rates make."""
    if shape.rate is not None:
        return shape.rate * max_seconds
    rates = shape.trace.rates if shape.trace is not None else ()
    ends = [begin for begin, _ in rates[1:]] + [rates[-1][0] + shape.trace.step_s] if shape.trace and rates else []
    last = max_seconds * shape.speed
    return sum(rate * shape.share * max(0.0, min(end, last) - begin) for (begin, rate), end in zip(rates, ends))


def _drawn(shape: Shape, rng: random.Random, closed_count: int) -> Iterator[Request]:
    due: Iterator[float | None]
    if shape.trace is not None:
        rates = [(second / shape.speed, rate * shape.share * shape.speed) for second, rate in shape.trace.rates]
        due = at_rates(rates, shape.trace.step_s / shape.speed, shape.burstiness, random.Random(rng.random()))
    elif shape.rate is not None:
        due = at_rate(shape.rate, shape.burstiness, random.Random(rng.random()))
    else:
        due = itertools.repeat(None, closed_count if shape.count is None else shape.count)
    for index, due_s in enumerate(due):
        tokens = shape.input_lengths.draw(rng)
        prefix: tuple[tuple[int, int], ...] = ()
        if shape.prefix_tokens:
            prefix = ((-1 - rng.randrange(shape.num_prefixes), shape.prefix_tokens),)
        yield Request(index, tokens + shape.prefix_tokens, shape.output_lengths.draw(rng), due_s, prefix)


def _recorded(shape: Shape, trace: Trace, rng: random.Random) -> Iterator[Request]:
    def scaled(tokens: int) -> int:
        return max(1, round(tokens * shape.length_scale))

    index = itertools.count()
    for recorded in trace.requests:
        if shape.share < 1 and rng.random() >= shape.share:
            continue
        tokens = scaled(recorded.prompt_tokens)
        prefix = tuple((name, scaled(length)) for name, length in recorded.prefix)
        # Rounding may make the blocks of a prompt longer than the prompt.
        while prefix and sum(length for _, length in prefix) > tokens:
            *before, (name, length) = prefix
            length -= min(length, sum(part for _, part in prefix) - tokens)
            prefix = (*before, (name, length)) if length else tuple(before)
        yield Request(next(index), tokens, scaled(recorded.output_tokens), recorded.at / shape.speed, prefix)


def warm_up_requests(requests: tuple[Request, ...], count: int) -> tuple[Request, ...]:
    """Like the first ones, with prompts of their own."""
    return tuple(
        replace(request, index=-1 - i, due_s=None, prefix=())
        for i, request in enumerate(itertools.islice(itertools.cycle(requests), count))
    )
