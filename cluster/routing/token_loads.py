"""How many tokens each engine has to do with, by their weight: as it announced last, and of the requests sent there since.

Without the latter, all requests between two announcements would go to the engine that was the idlest at the first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.routing.token_weight import token_weight


class _Sent(NamedTuple):
    """A request by the weight of its tokens; ``priority`` is None where a place is kept for it."""

    weight: float
    priority: int | None


@dataclass(slots=True)
class _Engine:
    """``sent``: requests that no announcement counts yet; ``taken``: those of them that the next one counts."""

    announced: float = 0.0
    sent: dict[str, _Sent] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)


class TokenLoads:
    """Of the engines by id, and of requests that are open. Safe to use from the threads of ingress and router at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[str, _Engine] = {}
        self._engine_of: dict[str, str] = {}  # open requests; empty while they were sent nowhere

    def of(self, engine_id: str) -> float:
        """Weight of the tokens of the requests that run or wait there, as far as this process knows."""
        with self._lock:
            engine = self._engines.get(engine_id)
            return 0.0 if engine is None else engine.announced + sum(one.weight for one in engine.sent.values())

    def sent_to(self, engine_id: str) -> tuple[int, int]:
        """How many requests were sent there that no announcement counts yet and for which no place is kept; and the priority of
        the most urgent, 0 without any."""
        with self._lock:
            engine = self._engines.get(engine_id)
            sent = [] if engine is None else [one.priority for one in engine.sent.values() if one.priority is not None]
            return len(sent), min(sent, default=0)

    def open(self, request_id: str) -> None:
        """The next attempt of a request begins, and the one before is over."""
        with self._lock:
            self._take_back(request_id)
            self._engine_of[request_id] = ""

    def sent(self, request_id: str, engine_id: str, num_tokens: int, priority: int | None = 0) -> None:
        """An open request goes there with so many tokens to compute, and nowhere else. Others are not noted.

        Args:
            priority: None where a place is kept for it.
        """
        with self._lock:
            if request_id not in self._engine_of or self._engine_of[request_id] == engine_id:
                return
            self._take_back(request_id)
            self._engine_of[request_id] = engine_id
            self._engines.setdefault(engine_id, _Engine()).sent[request_id] = _Sent(
                token_weight(num_tokens, num_tokens), priority
            )

    def taken(self, request_id: str) -> None:
        """The engine says that it has the request: its next announcement counts it."""
        with self._lock:
            engine = self._engines.get(self._engine_of.get(request_id, ""))
            if engine is not None and request_id in engine.sent:
                engine.taken.add(request_id)

    def close(self, request_id: str) -> None:
        """The request is over."""
        with self._lock:
            self._take_back(request_id)
            self._engine_of.pop(request_id, None)

    def announced(self, engine_id: str, num_tokens: int, uncomputed_tokens: int = 0) -> None:
        """The engine says how many tokens its requests have, and of these how many are still to be computed; what it has taken
        until now is among them."""
        with self._lock:
            engine = self._engines.setdefault(engine_id, _Engine())
            engine.announced = token_weight(num_tokens, uncomputed_tokens)
            for request_id in engine.taken:
                engine.sent.pop(request_id, None)
            engine.taken.clear()

    def keep(self, engine_ids: Iterable[str]) -> None:
        """Forget all other engines."""
        with self._lock:
            for engine_id in self._engines.keys() - set(engine_ids):
                del self._engines[engine_id]

    def _take_back(self, request_id: str) -> None:
        engine = self._engines.get(self._engine_of.get(request_id, ""))
        if engine is not None:
            engine.sent.pop(request_id, None)
            engine.taken.discard(request_id)
