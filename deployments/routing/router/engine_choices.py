"""What an ingress knows about its engines when it chooses one: whom it chose for a request, whom to avoid, and who is busy.

The ingress writes what it learns from replies and token streams, Serve's router in the same process reads it (perhaps on
another thread; every operation here is one of a dictionary).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from cluster.outputs import EngineLoad, ServedModel
from cluster.request import EngineRequest
from cluster.routing.fingerprint import can_continue
from cluster.routing.lines import Line, must_wait, open_to_arrival
from cluster.routing.token_loads import TokenLoads
from cluster.scaling.ingresses import EngineHost
from cluster.scaling.inputs import MAX_LOAD_AGE_S

# Until Serve's own view has caught up: a dead replica leaves the router's list, a hung one is killed.
AVOID_DEAD_S = 10.0
AVOID_SLOW_S = 5.0
AVOID_REFUSING_S = 0.5


class EngineChoices:
    """Engines by id, requests by id.

    Attributes:
        first_choice: the engine that the router would like best for the first attempt of a request; empty if it knows none.
        on_chosen: called with each open request and the engine that it goes to.
        model: what the engines serve, as one of them said; None until one did.
        most_engines: that the router has known at once.
        hosts: where the engines run, as far as they say.
        claimed: by engine, open places of which it has yet to say that they are kept for requests that this ingress moves.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.first_choice: Callable[[EngineRequest], str] = lambda _: ""
        self.on_chosen: Callable[[EngineRequest, str], None] = lambda *_: None
        self.model: ServedModel | None = None
        self.most_engines = 0
        self.hosts: list[EngineHost] = []
        self.claimed: Counter[str] = Counter()
        self._engines: dict[str, str] = {}
        self._none_since: float | None = now()
        self._none_until = float("-inf")
        self._avoided_until: dict[str, float] = {}
        self._chosen: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self._pinned: set[str] = set()
        self._left_engine: set[str] = set()
        self._loads = TokenLoads()
        self._said: dict[str, tuple[EngineLoad, float]] = {}  # what each engine said last, and when that was so

    def avoid(self, engine_id: str, seconds: float) -> None:
        """Choose another engine for so long, as long as there is one."""
        if engine_id:
            self._avoided_until[engine_id] = max(self._now() + seconds, self._avoided_until.get(engine_id, 0.0))

    def trust(self, engine_id: str) -> None:
        """The engine has taken a request."""
        self._avoided_until.pop(engine_id, None)

    def is_avoided(self, engine_id: str) -> bool:
        """Whether another engine is to be preferred."""
        until = self._avoided_until.get(engine_id)
        return until is not None and self._now() < until

    def has_other(self, engine_id: str, fingerprint: str = "") -> bool:
        """Whether the router knows an engine besides this one that is not avoided, and that has the fingerprint if one is
        given."""
        return any(
            other != engine_id
            and not self.is_avoided(other)
            and (not fingerprint or can_continue(of_other, fingerprint))
            for other, of_other in self._engines.items()
        )

    @property
    def engines(self) -> dict[str, str]:
        """Fingerprints of the engines that the router may choose from, by engine id."""
        return self._engines

    def seconds_without(self) -> float:
        """How long the router has known no engine at all; 0 while it knows one."""
        return 0.0 if self._none_since is None else self._now() - self._none_since

    def was_without_since(self, at: float) -> bool:
        """Whether the router has known no engine at some time since ``at``, of the same clock."""
        return self._none_since is not None or self._none_until >= at

    def set_engines(self, fingerprints: dict[str, str]) -> None:
        """The engines that the router may choose from now on, as in ``engines``."""
        self._engines = fingerprints
        self.most_engines = max(self.most_engines, len(fingerprints))
        self._loads.keep(fingerprints)
        for engine_id in self._said.keys() - fingerprints.keys():
            self._said.pop(engine_id, None)
        now = self._now()
        if fingerprints:
            if self._none_since is not None:
                self._none_since, self._none_until = None, now
        elif self._none_since is None:
            self._none_since = now
        for engine_id in [e for e, until in self._avoided_until.items() if e not in fingerprints and until < now]:
            self._avoided_until.pop(engine_id, None)

    def open(self, request_id: str, place: str = "") -> None:
        """The next attempt of a request begins; nothing is chosen yet. Requests that are not open are not noted.

        Args:
            place: the engine that keeps a place for it.
        """
        self._chosen[request_id] = ""
        self._places.pop(request_id, None)
        self._pinned.discard(request_id)
        if place:
            self._places[request_id] = place
        self._loads.open(request_id)

    def pin(self, request_id: str, engine_id: str) -> None:
        """The call of an open request is to go to the engine that has it already; also of one that is over, which counts for no
        load any more."""
        self._chosen.setdefault(request_id, "")
        self._places[request_id] = engine_id
        self._pinned.add(request_id)

    def is_pinned(self, request_id: str) -> bool:
        """Whether the engine that keeps a place for the request has it already."""
        return request_id in self._pinned

    def sends(self, request: EngineRequest, engine_id: str) -> None:
        """The router means to send the request there."""
        num_tokens = len(request.prompt_token_ids) + len(request.output_token_ids)
        priority = None if request.moved else request.priority
        self._loads.sent(request.request_id, engine_id, num_tokens, priority)

    def chose(self, request: EngineRequest, engine_id: str) -> None:
        """The router sends the request there."""
        self.sends(request, engine_id)
        if request.request_id in self._chosen:
            self._chosen[request.request_id] = engine_id
            self.on_chosen(request, engine_id)

    def place(self, request_id: str) -> str:
        """The engine that keeps a place for the request; empty if none does."""
        return self._places.get(request_id, "")

    def took(self, request_id: str) -> None:
        """The engine that was chosen says that it has the request."""
        self._loads.taken(request_id)

    def left_engine(self, request_id: str) -> None:
        """An engine had the request, be it in its queue, and has it no more: it is no later arrival. One that was refused is."""
        self._left_engine.add(request_id)

    def announced(self, engine_id: str, load: EngineLoad, age_s: float = 0.0) -> None:
        """The engine says how it is, or was so long ago."""
        self._loads.announced(engine_id, load.num_tokens, load.uncomputed_tokens)
        self._said[engine_id] = load, self._now() - age_s

    def open_to(self, request: EngineRequest) -> frozenset[str] | None:
        """The engines where the request overtakes nobody; None: any. One that an engine had before is no later arrival."""
        return None if request.request_id in self._left_engine else self.open_engines(request.priority)

    def open_engines(self, priority: int) -> frozenset[str]:
        """Those to which a request may go that has just come, so that it overtakes nobody (``cluster.routing.lines``)."""
        return open_to_arrival(self._lines(), priority)

    def must_wait(self, priority: int) -> bool:
        """Whether such a request had better wait here for a moment (``cluster.routing.lines``)."""
        # Only where a queue is full; so the lines of nearly all arrivals are built once, when an engine is chosen.
        said = list(self._said.items())
        is_full = any(load.free <= self._loads.sent_to(engine_id)[0] for engine_id, (load, _) in said)
        return is_full and must_wait(self._lines(), priority)

    def _lines(self) -> list[Line]:
        return [self._line(engine_id) for engine_id in list(self._engines) if not self.is_avoided(engine_id)]

    def _line(self, engine_id: str) -> Line:
        said = self._said.get(engine_id)
        if said is None:
            return Line(engine_id, is_known=False)
        (load, at), sent, now = said, self._loads.sent_to(engine_id), self._now()
        is_known = now - at <= MAX_LOAD_AGE_S
        waited_s = load.longest_wait_after(now - at)
        open_places = max(0, load.open_places - self.claimed[engine_id])
        return Line(engine_id, is_known, open_places, *sent, load.line_length, load.line_priority, load.free, waited_s)

    def token_weight(self, engine_id: str) -> float:
        """Of the requests that run or wait there: as announced last, and of those that were sent since."""
        return self._loads.of(engine_id)

    def chosen(self, request_id: str) -> str:
        """The engine that the present attempt was sent to; empty as long as there is none."""
        return self._chosen.get(request_id, "")

    def close(self, request_id: str) -> None:
        """The request is over."""
        self._chosen.pop(request_id, None)
        self._places.pop(request_id, None)
        self._pinned.discard(request_id)
        self._left_engine.discard(request_id)
        self._loads.close(request_id)


_of_deployments: dict[tuple[str, str], EngineChoices] = {}


def choices_of(app_name: str, deployment_name: str) -> EngineChoices:
    """The one that all handles and routers of this deployment share in this process."""
    return _of_deployments.setdefault((app_name, deployment_name), EngineChoices())
