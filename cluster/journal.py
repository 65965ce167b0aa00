"""What the ingress remembers of each unfinished request, so that the request survives its engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.outputs import TokenDelta
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams


class JournalGapError(RuntimeError):
    """A token arrived before one that precedes it: the stream lost something and must resume from ``JournalEntry.next_index``."""


@dataclass(slots=True)
class JournalEntry:
    """One sequence: what was asked, and the tokens delivered so far, each of them once and in order.

    Attributes:
        request_id: unique for the life of the cluster.
        prompt_token_ids, params, priority, cache_salt, tenant, subscriber: as in EngineRequest; params carry the assigned seed.
        came_at: when it came, seconds since 1970.
        attempt: number of the current submission; tokens of older ones are dropped.
        output_token_ids: tokens delivered by all attempts together.
        fingerprint: of the engine that made them; only an equal one may continue. Empty until the first token.
        finish_reason: set by the last delta.
        engine_id: of the engine that ended an attempt last; empty before.
        marks: when it was where (``cluster.observability.request_trace``), seconds since 1970.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    subscriber: str = ""
    priority: int = 0
    cache_salt: str = ""
    tenant: str = ""
    attempt: int = 0
    output_token_ids: list[int] = field(default_factory=list)
    fingerprint: str = ""
    finish_reason: str | None = None
    engine_id: str = ""
    marks: dict[str, float] = field(default_factory=dict)
    came_at: float = field(default_factory=time.time, compare=False)

    @property
    def next_index(self) -> int:
        """Index of the next token wanted."""
        return len(self.output_token_ids)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def accept(self, delta: TokenDelta) -> TokenDelta | None:
        """Record ``delta`` and return the part of it that is new, or None if there is nothing to deliver.

        Raises:
            JournalGapError: ``delta`` starts after the next token wanted; nothing was recorded.
        """
        if delta.attempt != self.attempt or self.finish_reason is not None:
            return None
        repeated = len(self.output_token_ids) - delta.index
        if repeated < 0:
            raise JournalGapError(
                f"request {self.request_id}: token {delta.index} arrived, token {self.next_index} is still missing"
            )
        if repeated:
            delta = delta._replace(
                index=self.next_index,
                token_ids=delta.token_ids[repeated:],
                logprobs=delta.logprobs[repeated:] if delta.logprobs else delta.logprobs,
            )
        if not delta.token_ids and delta.finish_reason is None:
            return None
        self.output_token_ids.extend(delta.token_ids)
        self.finish_reason = delta.finish_reason
        return delta

    def accept_token(self, attempt: int, index: int, token: int) -> bool:
        """Record it if it is the next one, as most are; False if ``accept`` has to say what it is."""
        tokens = self.output_token_ids
        if attempt != self.attempt or index != len(tokens) or self.finish_reason is not None:
            return False
        tokens.append(token)
        return True

    def engine_request(self) -> EngineRequest:
        """The current attempt, as an engine gets it."""
        return EngineRequest(
            request_id=self.request_id,
            prompt_token_ids=self.prompt_token_ids,
            params=self.params,
            attempt=self.attempt,
            subscriber=self.subscriber,
            output_token_ids=list(self.output_token_ids),
            priority=self.priority,
            cache_salt=self.cache_salt,
            tenant=self.tenant,
            came_at=self.came_at if self.attempt else 0.0,
        )

    def resume_request(self) -> EngineRequest:
        """Begin the next attempt: it continues after the delivered tokens, and the tokens of this one are fenced off."""
        self.attempt += 1
        return self.engine_request()


class RequestJournal:
    """The entries of one ingress by request id."""

    def __init__(self) -> None:
        self._entries: dict[str, JournalEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[JournalEntry]:
        return iter(self._entries.values())

    def open(self, entry: JournalEntry) -> None:
        """Begin to record; a request id is used once."""
        if entry.request_id in self._entries:
            raise ValueError(f"request {entry.request_id} is already in the journal")
        self._entries[entry.request_id] = entry

    def get(self, request_id: str) -> JournalEntry | None:
        return self._entries.get(request_id)

    def close(self, request_id: str) -> None:
        """Forget the request; what still arrives for it is dropped by the caller, who finds no entry."""
        self._entries.pop(request_id, None)

    def resume_indices(self) -> dict[str, int]:
        """The next index wanted of every unfinished request, as ``attach`` takes it."""
        return {entry.request_id: entry.next_index for entry in self._entries.values() if not entry.finished}
