"""What an engine says about a request: tokens on the side stream, and the unary reply that ends the call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

PREEMPTED = -9  # wire value of a slot whose request was preempted (FastDeploy's PREEMPTED_TOKEN_ID)
NO_TOKEN = -1  # the slot did not sample in this step

FINISH_STOP = "stop"
FINISH_LENGTH = "length"
FINISH_ABORT = "abort"
FINISH_HANDOVER = "handover"  # the engine leaves on purpose; the ingress continues the request elsewhere
FINISH_MOVE = "move"  # it waited in a full engine, and its ingress has a place for it elsewhere
# An engine ended it for a reason of its own; its ingress goes on with it.
FINISHES_ELSEWHERE = frozenset({FINISH_ABORT, FINISH_HANDOVER, FINISH_MOVE})


class TokenLogprobs(NamedTuple):
    """Log-probabilities of one position, from the distribution that the setting ``logprobs_mode`` names.

    ``top_ids``/``top_logprobs`` are the most likely tokens, best first; ``rank`` of the token itself starts at 1.
    """

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class TokenDelta(NamedTuple):
    """New tokens of one request in one engine step. ``index`` is the position of the first in the whole output.

    The ingress delivers a token once: it drops what comes from an older ``attempt`` or an ``index`` it already has.
    ``finish_reason`` is set on the last delta; ``matched_stop`` is then the token id or token sequence that matched.
    ``prompt_logprobs`` comes once, with the first token; its first entry is None.
    """

    request_id: str
    attempt: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    matched_stop: int | list[int] | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def is_first_word(self) -> bool:
        """It only says that an engine has taken the request."""
        return bool(self.request_id) and not self.token_ids and self.finish_reason is None


class PlainTokens(NamedTuple):
    """Of one engine step, a token each of requests of which nothing else is said: the way of nearly all tokens, in four lists of
    one length, so that a step of many requests is few objects and few calls.

    None is the first token of its attempt. ``attempts`` and ``indices`` are as in ``TokenDelta``.
    """

    request_ids: list[str]
    attempts: list[int]
    indices: list[int]
    token_ids: list[int]

    @classmethod
    def none(cls) -> PlainTokens:
        """To be filled."""
        return cls([], [], [], [])

    def deltas(self) -> Iterator[TokenDelta]:
        """The same, one by one."""
        for request_id, attempt, index, token in zip(*self):
            yield TokenDelta(request_id, attempt, index, [token])


class StepOutput:
    """What an engine says after one step; iterates over all of it as ``TokenDelta``, each request at most once.

    Attributes:
        plain: subscriber to the tokens of its requests of which nothing else is said.
        deltas: of all other requests.
    """

    __slots__ = ("deltas", "plain")

    def __init__(self, deltas: list[TokenDelta] | None = None) -> None:
        self.plain: dict[str, PlainTokens] = {}
        self.deltas: list[TokenDelta] = [] if deltas is None else deltas

    def __bool__(self) -> bool:
        return bool(self.plain or self.deltas)

    def __len__(self) -> int:
        return len(self.deltas) + sum(len(tokens.token_ids) for tokens in self.plain.values())

    def __iter__(self) -> Iterator[TokenDelta]:
        for tokens in self.plain.values():
            yield from tokens.deltas()
        yield from self.deltas


# On every token stream of an engine once it begins to drain: it is of no request, and says that the engine leaves.
ENGINE_LEAVES = TokenDelta("", 0, 0, [], finish_reason=FINISH_HANDOVER)


class EngineLoad(NamedTuple):
    """What an engine says of itself, on every token stream: at once when it takes more or less than before, else four times a
    second.

    Attributes:
        free: requests that would find a slot or a place in the queue; below 0 if the engine took begun ones beyond its limit.
        max_queued: requests that may wait in it.
        num_ended: requests that have ended since it started.
        num_tokens: prompts and answers so far of its requests, running and waiting.
        open_places: requests that would begin at once: slots and memory that nobody waits for and nobody has reserved.
        num_movable: requests of the subscriber that wait, have not begun and for which no place was kept there.
        line_length: so many of all subscribers, and those on their way to the engine's thread for whom no place is open;
            ``line_priority`` is that of the most urgent.
        oldest_wait_s: of the subscriber's, how long the first has waited, since it came to the ingress.
        sampled_at: when the engine's thread saw its queue so, in seconds since 1970 on the engine's machine. What is counted
            where it is told (``free``, ``num_ended``, ``num_tokens``, ``num_arrived``) is younger.
        told_after_s: how long after that it was told.
        uncomputed_tokens: ``waiting_tokens``, and what is left of the prompts that are being computed.
        ready_for_grammars: a first grammar takes no longer than any other.
        num_running: requests that own a slot.
        num_waiting: requests that do not; also those that the engine's thread has yet to take.
        waiting_tokens: of the prompts, and answers so far, of those that wait.
        longest_wait_s: how long the first of them has waited, whosever it is, since it came to its ingress.
        kv_tokens: that the KV cache holds.
        free_kv_tokens: of these, those that nobody owns, cached or not.
        num_arrived: requests that it took since it started; this and what follows only grows.
        num_prompt_tokens: of the prompts that began, those of the warm-up included.
        num_cached_prompt_tokens: of these, those found in the prefix cache.
        num_generated_tokens: of answers.
        num_preemptions: requests that lost their slot for want of memory.
        num_steps: that its scheduler planned, with or without results so far.
        num_prefill_tokens: that these computed, of prompts and of answers that are computed again.
        queue_time_counts, queue_time_s: how long requests waited for their slot: how many in each of ``REQUEST_BUCKETS_S`` and
            beyond, and the sum.
    """

    free: int
    max_queued: int
    num_ended: int = 0
    num_tokens: int = 0
    open_places: int = 0
    num_movable: int = 0
    oldest_wait_s: float = 0.0
    sampled_at: float = 0.0
    num_running: int = 0
    num_waiting: int = 0
    waiting_tokens: int = 0
    longest_wait_s: float = 0.0
    kv_tokens: int = 0
    free_kv_tokens: int = 0
    num_arrived: int = 0
    num_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    num_prefill_tokens: int = 0
    queue_time_counts: tuple[int, ...] = ()
    queue_time_s: float = 0.0
    line_length: int = 0
    line_priority: int = 0
    ready_for_grammars: bool = True
    told_after_s: float = 0.0
    uncomputed_tokens: int = 0

    @property
    def running_tokens(self) -> int:
        """Of the prompts, and answers so far, of those that run."""
        return max(0, self.num_tokens - self.waiting_tokens)

    def longest_wait_after(self, age_s: float) -> float:
        """``longest_wait_s`` when that is so long ago, if the first still waits: what is seen of the queue does not age alone."""
        return self.longest_wait_s + max(0.0, age_s - self.told_after_s)

    @property
    def room(self) -> tuple[int, ...]:
        """What is told at once when it changes."""
        return self.free, self.max_queued, self.num_ended, self.open_places, self.num_movable, self.line_length


class PlacesKept(NamedTuple):
    """What an engine keeps for requests that an ingress is about to bring.

    Attributes:
        places: for so many.
        num_tokens: there is memory for so many tokens.
        number: of the reservation, unlike that of any other one of any engine. A request that comes for a place says it.
    """

    places: int = 0
    num_tokens: int = 0
    number: int = 0


# In the order in which the engine said them.
StreamItem: TypeAlias = "TokenDelta | PlainTokens | EngineLoad"


class GenerateReply(NamedTuple):
    """Reply of the unary call: how many output tokens the stream delivers in all (earlier attempts included).

    ``engine_id`` says whose stream that is, ``marks`` when the request was where (``cluster.observability.request_trace``).
    """

    num_tokens: int
    finish_reason: str
    engine_id: str = ""
    marks: dict[str, float] | None = None


class AttachRequired(NamedTuple):
    """Reply of the unary call when the subscriber has no stream to this engine yet; nothing was submitted.

    ``runner`` is the Ray actor handle whose ``attach`` method streams the tokens.
    """

    engine_id: str
    runner: object
    fingerprint: str


class NotAdmitted(NamedTuple):
    """Reply of the unary call of an engine that takes no new requests; nothing was submitted, and no attempt is used up.

    ``last_resort`` says that it would still take a request that no other engine takes (its node drains, but it still serves).
    """

    engine_id: str
    message: str
    last_resort: bool = False


class NotBegun(NamedTuple):
    """Reply to a call that follows a request which the engine does not have: it was not sent ahead, or was given up."""

    engine_id: str = ""


class ServedModel(NamedTuple):
    """What an ingress has to know of the model that its engines serve; with their replicas it travels as text."""

    model_id: str
    max_model_len: int
    vocab_size: int

    def as_metadata(self) -> dict[str, str]:
        """As it travels."""
        return {name: str(value) for name, value in self._asdict().items()}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> ServedModel | None:
        """What a replica says; None if it does not."""
        if not metadata.keys() >= set(cls._fields):
            return None
        return cls(metadata["model_id"], int(metadata["max_model_len"]), int(metadata["vocab_size"]))


class EngineInfo(NamedTuple):
    """Constants of a loaded engine."""

    engine_id: str
    fingerprint: str
    model_id: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
