"""What a load is: requests with their times and lengths, and how they are sent."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from cluster.bench.connection import Target
from cluster.bench.prompts import PromptKind


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        index: what tells its prompt from all others.
        prompt_tokens, output_tokens: how long it is, and how long its answer may be.
        due_s: seconds from the beginning at which it is sent; None: when a stream is free.
        prefix: (name, tokens) of the pieces that its prompt begins with; pieces of one name are equal.
        leaves_after: its client closes the connection after so many events with tokens; None: it stays.
    """

    index: int
    prompt_tokens: int
    output_tokens: int
    due_s: float | None = None
    prefix: tuple[tuple[int, int], ...] = ()
    leaves_after: int | None = None


@dataclass(frozen=True)
class Load:
    """What one process sends.

    Attributes:
        fields: of every request body, as JSON without braces.
        streams: most requests under way at the same time; None: any number.
        repeats: whether requests go on with new prompts after the last one, until ``max_seconds``.
        num_warmups: requests before the beginning, which are not counted.
    """

    target: Target
    fields: str
    is_chat: bool
    prompts: PromptKind
    requests: tuple[Request, ...]
    streams: int | None
    max_seconds: float
    repeats: bool = False
    num_warmups: int = 0

    def share(self, number: int, processes: int) -> Load:
        """The part of process ``number`` of ``processes``."""
        streams = self.streams
        if streams is not None:
            streams = streams // processes + (number < streams % processes)
        warmups = self.num_warmups // processes + (number < self.num_warmups % processes)
        return replace(self, requests=self.requests[number::processes], streams=streams, num_warmups=warmups)

    def in_order(self, processes: int = 1) -> Iterator[Request]:
        """The requests, again and again with new prompts where the load repeats."""
        yield from self.requests
        step = len(self.requests) * processes
        turn = 0
        while self.repeats and self.requests:
            turn += 1
            for request in self.requests:
                yield replace(request, index=request.index + turn * step)


@dataclass
class Sample:
    """What was seen of one request; times in seconds of ``time.perf_counter``, which the processes of a machine share.

    Attributes:
        due: when it should have been sent.
        asked: when it was: from here on all waiting counts, also for a connection.
        arrivals: when each event with tokens came.
        end: when the last byte came.
        error: why it is no sample; None if it is one.
        is_cut: the run ended before the answer did, or the client left it.
    """

    index: int
    due: float
    asked: float
    wanted_tokens: int
    arrivals: array = field(default_factory=lambda: array("d"))
    end: float = 0.0
    output_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    error: str | None = None
    is_cut: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it counts."""
        return self.error is None and not self.is_cut

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.asked

    @property
    def tpot(self) -> float | None:
        """Mean seconds from token to token after the first; None for one token, or if all came at once."""
        if self.output_tokens < 2 or len(self.arrivals) < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.output_tokens - 1)
