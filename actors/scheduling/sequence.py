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
        num_prompt_tokens, max_num_tokens: of its prompt, and with the longest answer.
        num_tokens: tokens that exist once all launched steps are done.
        num_computed_tokens: positions whose KV is in the cache once all launched steps are done.
        samples_plainly: a token is drawn from the logits as they are, and nothing is told besides (``SamplingNeeds``); not so
            while a minimum length is not reached.
        block_ids: KV blocks in order of position.
        slot: row in the runner's state, -1 without one.
        num_preemptions: how often it was preempted.
        arrival: its number here.
        came_at: when it came, to its ingress or here: seconds since 1970.
        first_step: the first step that was planned with it here.
        turn: round in which it is its tenant's turn (``WaitingQueue``).
    """

    request: EngineRequest
    arrival: int
    came_at: float = 0.0
    first_step: int = 0
    turn: int = 0
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    max_num_tokens: int = field(init=False)
    num_tokens: int = field(init=False)
    samples_plainly: bool = field(init=False)
    state: RequestState = RequestState.WAITING
    slot: int = -1
    block_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_registered_blocks: int = 0
    prompt_logprobs: list = field(default_factory=list)
    _hashes: list[BlockHash] = field(default_factory=list)

    def __post_init__(self) -> None:
        request = self.request
        self.token_ids = [*request.prompt_token_ids, *request.output_token_ids]
        self.num_prompt_tokens, self.num_tokens = len(request.prompt_token_ids), len(self.token_ids)
        params = request.params
        self.max_num_tokens = self.num_prompt_tokens + params.max_tokens
        self.samples_plainly = (
            params.logprobs is None and not params.is_masked and not params.has_penalties and not params.min_tokens
        )

    @property
    def order(self) -> tuple[int, bool, int, float, int]:
        """Order of service: smaller goes first. An answer in the middle, wherever it began, comes before those to begin, and has
        had its turn."""
        if self.is_to_begin and self.turn >= 0:
            return self.request.priority, True, self.turn, self.came_at, self.arrival
        return self.request.priority, self.is_to_begin, -1, 0.0, self.arrival

    @property
    def seniority(self) -> tuple[float, int]:
        """Who came first, here or to an engine that is gone: smaller is older."""
        return self.came_at, self.arrival

    @property
    def is_to_begin(self) -> bool:
        """The client has no token of it."""
        return self.num_tokens == self.num_prompt_tokens

    @property
    def is_movable(self) -> bool:
        """Whether it may go to another engine while it waits: its client has nothing of it, and no place was kept for it here."""
        return self.is_to_begin and not self.request.moved

    @property
    def key(self) -> RequestKey:
        return self.request.request_id, self.request.attempt

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_in_flight(self) -> int:
        """Tokens that launched steps will sample and the host has not seen yet."""
        return self.num_tokens - len(self.token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        return self.num_tokens - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        return self.num_uncomputed_tokens <= 1 and self.num_tokens > self.num_prompt_tokens

    @property
    def will_have_finished(self) -> bool:
        """The tokens in flight already reach max_tokens, so there is nothing left to launch."""
        return self.num_tokens >= self.max_num_tokens

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
