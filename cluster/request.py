"""A request as it travels from the ingress to an engine, and the states it passes through there."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from cluster.sampling_params import SamplingParams


@dataclass(slots=True)
class EngineRequest:
    """One sequence to generate, as the ingress submits it.

    Attributes:
        request_id: unique for the life of the cluster.
        attempt: counts submissions of the same request; a late token of an older attempt is dropped (fencing).
        subscriber: the token stream (one per ingress) on which the tokens are delivered.
        prompt_token_ids: the client's prompt; its length never changes.
        params: sampling and stop parameters, seed included.
        output_token_ids: tokens delivered by earlier attempts; they are recomputed, not sampled or sent again.
        priority: larger values give way first, as in vLLM (0 is the default).
        cache_salt: separates prefix-cache entries of clients that must not share them.
        tenant: whose request it is among those that take turns; an opaque name, empty if all are one.
        place: number of the reservation that keeps a place for it, which waited in another engine; 0 without one.
        came_at: when it came to its ingress, seconds since 1970, of later attempts; 0 of a first one, which comes now (or was
            held there for half a second at most).
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    attempt: int = 0
    subscriber: str = ""
    output_token_ids: list[int] = field(default_factory=list)
    priority: int = 0
    cache_salt: str = ""
    tenant: str = ""
    place: int = 0
    came_at: float = 0.0

    @property
    def moved(self) -> bool:
        """A place is kept for it in an engine."""
        return self.place > 0


# Request id and attempt.
RequestKey: TypeAlias = "tuple[str, int]"


class Followed(NamedTuple):
    """Requests that were sent ahead to one engine, for which one call follows.

    Attributes:
        engine_id: which engine.
        keys: of at least one request.
    """

    engine_id: str
    keys: list[RequestKey]


class RequestState(enum.Enum):
    """Where a request stands inside an engine."""

    WAITING = "waiting"  # in the queue, owns no slot and no block
    RUNNING = "running"  # owns a slot and its KV blocks
    PREEMPTING = "preempting"  # blocks freed, slot kept until its PREEMPTED marker is saved
    RETIRING = "retiring"  # finished or aborted, slot kept until its PREEMPTED marker is saved
    FINISHED = "finished"  # owns nothing


_S = RequestState
TRANSITIONS: dict[RequestState, frozenset[RequestState]] = {
    _S.WAITING: frozenset({_S.RUNNING, _S.FINISHED}),
    _S.RUNNING: frozenset({_S.PREEMPTING, _S.RETIRING, _S.FINISHED}),
    _S.PREEMPTING: frozenset({_S.WAITING, _S.RETIRING}),
    _S.RETIRING: frozenset({_S.FINISHED}),
    _S.FINISHED: frozenset(),
}


class IllegalTransitionError(RuntimeError):
    """A request was moved along an edge that TRANSITIONS does not have: a bug in the scheduler."""


def check_transition(old: RequestState, new: RequestState, request_id: str) -> RequestState:
    """Return ``new``, or raise IllegalTransitionError if the table has no edge from ``old`` to it."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransitionError(f"request {request_id}: {old.value} -> {new.value}")
    return new
