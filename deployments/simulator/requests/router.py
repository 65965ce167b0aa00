"""Which engine an arrival goes to: the lines, the policies and the weights of the router that serves (``cluster.routing``).

Between two ticks an ingress knows of an engine what it said at the first, and what was sent there since. A policy looks at all
engines for each request; so that fleets of thousands have time for that, it sees a short list that it chooses the same from.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from cluster.routing.candidates import EngineCandidate, RequestView
from cluster.routing.lines import Line, open_to_arrival
from cluster.routing.policies import POLICIES
from cluster.routing.token_weight import token_weight
from cluster.scaling.balance import BalanceView
from deployments.simulator.setup import SimulatorSettings

T = TypeVar("T")
_ANYONE = RequestView()


class RoutedEngine(Protocol):
    """What the router asks of an engine.

    Attributes:
        name: unique among them.
        num_tokens: of its requests, prompts and answers so far.
        uncomputed_tokens: of these, those of prompts that are still to be computed.
        open_places: requests that would begin there at once.
        has_line: somebody waits there.
        is_crowded: somebody waits there, or the next one would.
    """

    name: int

    @property
    def num_tokens(self) -> int: ...

    @property
    def uncomputed_tokens(self) -> int: ...

    @property
    def open_places(self) -> int: ...

    @property
    def has_line(self) -> bool: ...

    @property
    def is_crowded(self) -> bool: ...

    def balance_view(self, now: float) -> BalanceView: ...


E = TypeVar("E", bound=RoutedEngine)


class Weights:
    """Tokens of the engines, by their weight, between two ticks."""

    def __init__(self, prompt_weight: float) -> None:
        self._prompt_weight = prompt_weight
        self._of: dict[int, float] = {}

    def of(self, engine: RoutedEngine) -> float:
        found = self._of.get(engine.name)
        if found is None:
            found = token_weight(engine.num_tokens, engine.uncomputed_tokens, self._prompt_weight)
            self._of[engine.name] = found
        return found

    def sent(self, engine: RoutedEngine, num_tokens: int) -> None:
        """A request goes there; the engine does not have it yet."""
        self._of[engine.name] = self.of(engine) + token_weight(num_tokens, num_tokens, self._prompt_weight)


class OpenEngines(Generic[E]):
    """Those to which arrivals may go, one after the other (``open_to_arrival``). What it says changes only when an engine has no
    place left, or no more places are left than requests wait; it is asked again then.

    Attributes:
        engines: in any order.
        version: another one whenever engines were added.

    Args:
        ready: that take requests.
        busy: of these, those that have any.
    """

    def __init__(self, ready: Sequence[E], busy: Iterable[E], now: float) -> None:
        self._ready, self._now = ready, now
        self.engines: list[E] = list(ready)
        self.version = 0
        self._index: dict[int, int] | None = None
        self._spare = float("inf")  # places beyond those who wait
        if any(engine.is_crowded for engine in busy):
            self._ask()

    def __contains__(self, engine: E) -> bool:
        return self._index is None or engine.name in self._index

    def sent(self, engine: E) -> None:
        """An arrival went to one of them, which has it by now."""
        if self._spare <= 0:
            return
        self._spare -= 1
        if self._spare <= 0 or (self._index is None and engine.open_places <= 0):
            self._ask()
        elif self._index is not None and engine.open_places <= 0:
            self._remove(engine)

    def _ask(self) -> None:
        lines = []
        for engine in self._ready:
            view = engine.balance_view(self._now)
            lines.append(
                Line(
                    view.engine_id, open_places=view.open_places, length=view.line_length, waited_s=view.longest_wait_s
                )
            )
        open_to = open_to_arrival(lines)
        self.engines = [engine for engine, line in zip(self._ready, lines) if line.engine_id in open_to]
        self._index = {engine.name: i for i, engine in enumerate(self.engines)}
        self._spare = sum(max(0, line.open_places) for line in lines if not line.length)
        self._spare -= sum(line.length for line in lines)
        self.version += 1

    def _remove(self, engine: E) -> None:
        assert self._index is not None
        place, last = self._index.pop(engine.name), self.engines.pop()
        if last is not engine:
            self.engines[place] = last
            self._index[last.name] = place


def _all(open_to: OpenEngines[E], weights: Weights, rng: random.Random) -> Callable[[], Sequence[E]]:
    return lambda: open_to.engines


def _two(open_to: OpenEngines[E], weights: Weights, rng: random.Random) -> Callable[[], Sequence[E]]:
    """For ``power_of_two``, which takes the lighter one."""
    return lambda: rng.sample(open_to.engines, min(2, len(open_to.engines)))


def _lightest(open_to: OpenEngines[E], weights: Weights, rng: random.Random) -> Callable[[], Sequence[E]]:
    """For ``least_tokens``: the first of its order."""
    version = -1
    heap: list[tuple[float, float, int, E]] = []

    def shortlist() -> Sequence[E]:
        nonlocal version, heap
        if version != open_to.version:
            version = open_to.version
            heap = [(weights.of(engine), rng.random(), engine.name, engine) for engine in open_to.engines]
            heapq.heapify(heap)
        while True:
            weight, _, name, engine = heap[0]
            if engine not in open_to:
                heapq.heappop(heap)
            elif weight != weights.of(engine):
                heapq.heapreplace(heap, (weights.of(engine), rng.random(), name, engine))
            else:
                return [engine]

    return shortlist


_SHORTLISTS: dict[str, Callable[..., Callable[[], Sequence[Any]]]] = {
    "power_of_two": _two,
    "least_tokens": _lightest,
}


class Router:
    """Chooses engines for the requests that come between two ticks."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings, self._rng = settings, random.Random(settings.seed)
        self._policy = POLICIES[settings.routing_policy]
        self._make_shortlist = _SHORTLISTS.get(settings.routing_policy, _all)

    def place(
        self,
        now: float,
        ready: Sequence[E],
        busy: Iterable[E],
        returning: Iterable[T],
        arriving: Iterable[T],
        num_tokens: Callable[[T], int],
        submit: Callable[[E, T], None],
    ) -> None:
        """Give each request to an engine.

        Args:
            now: of the tick; the engines are as they were then.
            ready: one at least.
            busy: of these, those that have requests.
            returning: an engine had them before; they are no later arrivals, so that no line stops them.
            arriving: in order.
            num_tokens: of a request, to compute.
        """
        weights = Weights(self._settings.prefill_weight)
        for requests, stand_in_line in ((returning, False), (arriving, True)):
            open_to = OpenEngines(ready, busy if stand_in_line else (), now)
            shortlist = self._make_shortlist(open_to, weights, self._rng)
            for request in requests:
                engine = self._choice(shortlist(), weights)
                submit(engine, request)
                weights.sent(engine, num_tokens(request))
                if stand_in_line:
                    open_to.sent(engine)

    def _choice(self, some: Sequence[E], weights: Weights) -> E:
        views = [EngineCandidate(str(i), token_weight=weights.of(engine)) for i, engine in enumerate(some)]
        return some[int(self._policy(_ANYONE, views, self._rng)[0].engine_id)]
