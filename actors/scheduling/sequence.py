"""The scheduler's view of one request: tokens, slot, blocks, and how far it has been computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.block_hash import BlockHash, hash_block, root_hash
from cluster.request import EngineRequest, RequestKey, RequestState, check_transition


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside an engine.

    Attributes:
        token_ids: prompt, then every output token the host has seen (those of earlier attempts included).
        num_computed_tokens: positions whose KV is in the cache once all launched steps are done.
        num_in_flight: tokens that launched steps will sample and the host has not seen yet.
        block_ids: KV blocks in order of position.
        slot: row in the runner's state, -1 without one.
        num_preemptions: how often it was preempted.
        turn: round in which it is its tenant's turn (``WaitingQueue``).
    """

    request: EngineRequest
    arrival: int
    turn: int = 0
    token_ids: list[int] = field(init=False)
    state: RequestState = RequestState.WAITING
    slot: int = -1
    block_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_in_flight: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_registered_blocks: int = 0
    prompt_logprobs: list = field(default_factory=list)
    _hashes: list[BlockHash] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token_ids = [*self.request.prompt_token_ids, *self.request.output_token_ids]

    @property
    def order(self) -> tuple[int, bool, int, int]:
        """Order of service: smaller goes first. An answer in the middle, wherever it began, comes before those to begin, and has
        had its turn."""
        to_begin = self.is_to_begin
        return self.request.priority, to_begin, self.turn if to_begin else 0, self.arrival

    @property
    def is_to_begin(self) -> bool:
        """The client has no token of it."""
        return self.num_tokens == self.num_prompt_tokens

    @property
    def is_movable(self) -> bool:
        """Whether it may go to another engine while it waits: its client has nothing of it, and it was not moved before."""
        return self.is_to_begin and not self.request.moved

    @property
    def key(self) -> RequestKey:
        return self.request.request_id, self.request.attempt

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens that exist once all launched steps are done."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_uncomputed_tokens(self) -> int:
        return self.num_tokens - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        return self.num_uncomputed_tokens <= 1 and self.num_tokens > self.num_prompt_tokens

    @property
    def will_have_finished(self) -> bool:
        """The tokens in flight already reach max_tokens, so there is nothing left to launch."""
        return self.num_tokens - self.num_prompt_tokens >= self.request.params.max_tokens

    def move_to(self, state: RequestState) -> None:
        """Change state along the transition table."""
        self.state = check_transition(self.state, state, self.request.request_id)

    def block_hashes(self, block_size: int, num_tokens: int) -> list[BlockHash]:
        """Hash chain of the full blocks within the first ``num_tokens`` known tokens; computed once a block."""
        count = min(num_tokens, len(self.token_ids)) // block_size
        while len(self._hashes) < count:
            parent = self._hashes[-1] if self._hashes else root_hash(self.request.cache_salt)
            start = len(self._hashes) * block_size
            self._hashes.append(hash_block(parent, self.token_ids[start : start + block_size]))
        return self._hashes[:count]
