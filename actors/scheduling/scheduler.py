"""Continuous batching: which sequence computes how many tokens in the next step, and who gives way when blocks run out.

Integers, no tensors; what is done for each row of each step is in ``step_rows``. ``schedule`` makes a plan before the previous
step's tokens are known: it counts them as in flight and lets the device decide about stops. ``update`` takes the saved results in
the order in which plans were made.

Policy: decoding sequences first (one token each), then prompts, which divide the rest of the step (``prompt_shares``) or wait for
others (``prefill_delay``). Waiting requests are admitted by priority, then answers in the middle (preempted, or begun on another
engine) before those to begin, then tenants in turn, then age (``WaitingQueue``); of every few admissions one goes to the request
that has waited longest, whatever its priority. A victim is taken from decoding sequences, then from prefilling ones; the last in
that order, but never the oldest one, so somebody always finishes. A request gets the blocks of its whole prefill when it is
admitted, and only if every running sequence could still take one more: admission cannot thrash.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import operator
from collections import deque
from collections.abc import Iterable

from actors.scheduling.kv_cache import KVCache
from actors.scheduling.prefill_delay import PrefillDelay
from actors.scheduling.prompt_shares import Prompt, has_tokens_for, prompt_shares
from actors.scheduling.sequence import Sequence
from actors.scheduling.step_plan import PromptLogprobs, SamplingNeeds, SlotInsert, SlotOutput, StepPlan, StepResult
from actors.scheduling.step_rows import step_rows
from actors.scheduling.waiting_queue import WaitingQueue
from cluster.errors import InvalidRequestError, OverloadedError
from cluster.outputs import FINISH_ABORT, NO_TOKEN, PREEMPTED, StepOutput, TokenDelta
from cluster.request import EngineRequest, RequestState

_State = RequestState


class SchedulerError(RuntimeError):
    """The scheduler and the device disagree: a bug, never a client's fault."""


class Scheduler:
    """Owner of sequences, slots and the block accounting of one engine.

    Args:
        kv_cache: the block pool.
        max_num_seqs: slots.
        max_num_batched_tokens: token budget of a step, at least ``max_num_seqs``.
        max_model_len: longest prompt plus output; the pool must hold one such sequence.
        max_queued_requests: requests that may wait; the next one is refused. Answers that have begun elsewhere have as many
            places more as there are slots: whoever sends them must not make the queue endless.
        oldest_first_every: of so many admissions one goes to the oldest waiting request.
        max_queue_share: of the waiting requests, those of one tenant; the next one of it is refused.
        prefill_delay: whether prompts wait for others; default: none does.
    """

    def __init__(
        self,
        kv_cache: KVCache,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        max_queued_requests: int = 1_000_000,
        oldest_first_every: int = 8,
        max_queue_share: float = 1.0,
        prefill_delay: PrefillDelay | None = None,
    ) -> None:
        assert max_num_batched_tokens >= max_num_seqs
        assert kv_cache.num_blocks_for(max_model_len) <= kv_cache.num_blocks
        self.kv_cache = kv_cache
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.max_queued_requests = max_queued_requests
        self.oldest_first_every = oldest_first_every
        self.max_queue_share = max_queue_share
        self.prefill_delay = prefill_delay or PrefillDelay()
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        # Of these, in the order of service, and the others. Until the next step is planned, some that decode may be among those.
        self._decoding: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        self.leaving: dict[int, Sequence] = {}  # slot -> preempted or retiring, until its marker has been saved
        self.num_preemptions = 0
        self.num_prompt_tokens = self.num_cached_prompt_tokens = self.num_generated_tokens = 0
        self.num_steps = 0  # that were planned; one whose results are outstanding counts
        self.num_prefill_tokens = 0  # that these compute of prompts, and of answers once more
        self._sequences: dict[tuple[str, int], Sequence] = {}
        self.num_reserved = 0  # free slots that are kept for requests which other engines are about to give up
        # A heap: the lowest is taken first. A GPU looks through all slots up to a step's last, so that few requests are to be in
        # low ones, also after many were there.
        self._free_slots = list(range(max_num_seqs))
        self._clears: list[int] = []
        self._launched: deque[tuple[StepPlan, dict[int, Sequence]]] = deque()
        self._arrivals = 0
        self._now = 0.0
        self._admissions_in_order = 0  # since it was the oldest one's turn
        self._rows = step_rows()

    def add_request(self, request: EngineRequest, now: float = 0.0) -> list[int]:
        """Queue a request at ``now``, seconds since 1970: one that waited elsewhere stands before those that came after it.

        Returns the list of its prompt and answer, which gets each token before ``update`` returns it.

        Raises:
            InvalidRequestError: it could never run here.
            OverloadedError: the queue is full.
        """
        num_prompt, params = len(request.prompt_token_ids), request.params
        if num_prompt == 0:
            raise InvalidRequestError("prompt must hold at least one token", "prompt")
        if params.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens must be at least 1, got {params.max_tokens}", "max_tokens")
        if num_prompt + params.max_tokens > self.max_model_len:
            raise InvalidRequestError(
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{num_prompt + params.max_tokens} tokens ({num_prompt} in the prompt, {params.max_tokens} in the completion).",
                "max_tokens",
                "context_length_exceeded",
            )
        if len(request.output_token_ids) >= params.max_tokens:
            raise InvalidRequestError("output_token_ids already reach max_tokens", "output_token_ids")
        # An answer in the middle, or a request that waited elsewhere, has room where others are refused; a later attempt alone is
        # neither.
        # Those that find a free slot in the next step are not in the queue.
        more = len(self._free_slots) + (self.max_num_seqs if request.output_token_ids or request.moved else 0)
        limit = self.max_queued_requests + more
        if len(self.waiting) >= limit:
            raise OverloadedError(f"{len(self.waiting)} requests are waiting, the limit is {limit}")
        if request.tenant:
            self._check_share(request.tenant, more)
        self._now = max(self._now, now)  # a clock that is set back makes nobody older
        # A clock of an ingress that is ahead makes nobody younger than who comes next.
        came_at = min(request.came_at or self._now, self._now)
        sequence = Sequence(request, self._arrivals, came_at, self.num_steps)
        key = request.request_id, request.attempt
        if key in self._sequences:
            raise InvalidRequestError(
                f"request {request.request_id} attempt {request.attempt} is already here", "request_id"
            )
        self._arrivals += 1
        self.prefill_delay.came(self.num_steps)
        self._sequences[key] = sequence
        if request.moved:
            self.waiting.put_back(sequence)
        else:
            self.waiting.add(sequence)
        return sequence.token_ids

    def _check_share(self, tenant: str, more: int) -> None:
        share, held = max(1, int(self.max_queue_share * self.max_queued_requests)), self.waiting.num_of(tenant)
        if held >= share + more:
            raise OverloadedError(
                f"{held} requests of this API key are waiting, which is its share of the queue (max_queue_share: "
                f"{share} of {self.max_queued_requests}); others may still be served"
            )

    @property
    def num_open_places(self) -> int:
        """Requests that would begin at once."""
        if not self.kv_cache.can_allocate(len(self.running) + 1):
            return 0
        return max(0, len(self._free_slots) - self.num_reserved - len(self.waiting))

    @property
    def num_open_tokens(self) -> int:
        """Tokens that the memory which nobody needs now holds, when every running request takes one more block."""
        return max(0, self.kv_cache.num_available - len(self.running)) * self.kv_cache.block_size

    @property
    def num_uncomputed_prompt_tokens(self) -> int:
        """Of requests that own a slot, the tokens to compute until the next one of their answers."""
        return sum(s.num_uncomputed_tokens for s in self._prefilling if not s.is_decoding)

    def reserve(self, count: int) -> int:
        """Keep up to ``count`` open places for requests that come for them; returns how many."""
        granted = min(count, self.num_open_places)
        self.num_reserved += granted
        return granted

    def release_reserved(self, count: int) -> None:
        """So many reserved places are needed no more, or their requests come now."""
        self.num_reserved -= count
        assert self.num_reserved >= 0

    def num_cached_tokens(self, sequence: Sequence) -> int:
        """Of a waiting request, the tokens that it would find in the cache."""
        return len(sequence.token_ids) - self._num_missing_tokens(sequence)

    def abort(self, request_id: str, attempt: int) -> TokenDelta | None:
        """End a request now: its blocks are free at once, its slot when the marker has been saved. None if unknown."""
        sequence = self._sequences.get((request_id, attempt))
        if sequence is None:
            return None
        if sequence.state is _State.WAITING:
            self.waiting.give_up(sequence)
            self._finish(sequence)
        elif sequence.state is _State.RUNNING:
            self._leave(sequence, _State.RETIRING)
            self._clears.append(sequence.slot)
        elif sequence.state is _State.PREEMPTING:
            sequence.move_to(_State.RETIRING)
            del self._sequences[request_id, attempt]
        return TokenDelta(request_id, attempt, sequence.num_output_tokens, [], finish_reason=FINISH_ABORT)

    def has_unfinished(self) -> bool:
        """Some request still needs a step, or a slot still waits for its marker."""
        return bool(self.waiting or self.running or self.leaving)

    def schedule(self) -> StepPlan | None:
        """Plan the next step; None when there is nothing to launch (results in flight may still be outstanding)."""
        plan = StepPlan(self.num_steps)
        owners: dict[int, Sequence] = {}
        for slot in self._clears:
            self._mark(plan, owners, self.leaving[slot])
        self._clears.clear()
        num_preemptions = self.num_preemptions
        self._schedule_decodes(plan, owners)
        budget = self.max_num_batched_tokens - plan.num_tokens
        if self.num_preemptions == num_preemptions:
            self._admit(plan, budget)
        self._schedule_prompts(plan, owners, budget)
        if plan.is_empty:
            return None
        for sequence in self._rows.rows_with_new_blocks(plan.scheduled, owners, self.kv_cache.block_size):
            self._register_full_blocks(sequence)
        self.num_steps += 1
        self._launched.append((plan, owners))
        return plan

    def update(self, result: StepResult) -> StepOutput:
        """Take the saved outputs of the oldest launched step; returns what clients get from it."""
        plan, owners = self._launched.popleft()
        if plan.step != result.step:
            raise SchedulerError(f"result of step {result.step}, expected {plan.step}")
        step = StepOutput()
        self._accept_plain(result.plain_slots, result.plain_tokens, owners, step)
        for output in result.outputs:
            sequence = owners[output.slot]
            if output.token == PREEMPTED:
                self._release_marked(sequence)
            elif sequence.state is _State.RUNNING or sequence.state is _State.PREEMPTING:
                if output.prompt_logprobs:
                    sequence.prompt_logprobs += output.prompt_logprobs
                if output.token == NO_TOKEN:
                    if output.slot in plan.sampling:
                        raise SchedulerError(f"step {plan.step}: slot {output.slot} was to sample and did not")
                else:
                    self._accept(sequence, output, step)
        return step

    # Planning.

    def _schedule_decodes(self, plan: StepPlan, owners: dict[int, Sequence]) -> None:
        for sequence in [s for s in self._prefilling if s.is_decoding]:
            self._prefilling.remove(sequence)
            bisect.insort(self._decoding, sequence, key=_order_of_decoding)
        rows = self._decoding.copy()  # as victims leave
        # The oldest goes first, so that a victim is never one that this plan has already scheduled.
        if rows and rows[0].request.priority != rows[-1].request.priority:
            oldest = min(self.running, key=_arrival)
            rows.sort(key=lambda s: s is not oldest)
        start, block_size = 0, self.kv_cache.block_size
        not_plain: list[Sequence] = []
        filled = plan.scheduled, plan.request_ids, owners, plan.sampling, not_plain
        while (start := self._rows.plan_rows(rows, start, block_size, *filled)) < len(rows):
            self._make_room(rows[start], plan, owners)
        for sequence in not_plain:
            self._add_needs(plan.needs, sequence)

    def _make_room(self, sequence: Sequence, plan: StepPlan, owners: dict[int, Sequence]) -> None:
        """Give it one more block, or its place to others."""
        while not self.kv_cache.can_allocate(1) and sequence.state is _State.RUNNING:
            self._preempt(self._pick_victim(plan), plan, owners)
        if sequence.state is _State.RUNNING:
            self._extend(sequence, 1, plan)

    def _schedule_prompts(self, plan: StepPlan, owners: dict[int, Sequence], budget: int) -> None:
        # After every decoding sequence, so that none of these is a victim any more; their blocks they have.
        prefilling = sorted(self._to_compute(), key=lambda s: s.order)
        if self._wait_for_others(plan, prefilling, budget):
            return
        prompts = [_prompt(s, s.num_uncomputed_tokens) for s in prefilling]
        shares = prompt_shares(prompts, [plan.step + 1 - s.first_step for s in prefilling], budget)
        for sequence, count in zip(prefilling, shares):
            if count:
                self.num_prefill_tokens += count
                self._launch(sequence, count, plan, owners)

    def _wait_for_others(self, plan: StepPlan, prefilling: list[Sequence], budget: int) -> bool:
        # Without a slot nobody comes. An answer in the middle waits for nobody, nor does a prompt of which a part is computed.
        if not plan.scheduled or not self._free_slots or not self.prefill_delay.max_steps:
            return False
        if not all(s.is_to_begin and s.num_computed_tokens <= s.num_cached_tokens for s in prefilling):
            return False
        tokens = [s.num_uncomputed_tokens for s in prefilling]
        came_at = [s.first_step for s in prefilling]
        return self.prefill_delay.waits(plan.step, plan.num_tokens, budget, came_at, tokens)

    def _to_compute(self) -> list[Sequence]:
        """Who has tokens to compute when all decoding sequences have been scheduled."""
        return [s for s in self._prefilling if not s.will_have_finished]

    def _pick_victim(self, plan: StepPlan) -> Sequence:
        oldest = min(self.running, key=_arrival)
        candidates = [s for s in self.running if s is not oldest and s.slot not in plan.scheduled]
        if not candidates:
            raise SchedulerError("out of blocks with one running sequence: the pool is smaller than max_model_len")
        return max(candidates, key=lambda s: (s.is_decoding, s.order))

    def _preempt(self, victim: Sequence, plan: StepPlan, owners: dict[int, Sequence]) -> None:
        self.num_preemptions += 1
        victim.num_preemptions += 1
        self._leave(victim, _State.PREEMPTING)
        self._mark(plan, owners, victim)

    def _mark(self, plan: StepPlan, owners: dict[int, Sequence], sequence: Sequence) -> None:
        plan.preempted.append(sequence.slot)
        plan.request_ids[sequence.slot] = sequence.request.request_id
        owners[sequence.slot] = sequence

    def _admit(self, plan: StepPlan, budget: int) -> None:
        prefilling = self._to_compute()
        left = budget - sum(s.num_uncomputed_tokens for s in prefilling)
        while self.waiting and self._free_slots and (left > 0 or self._has_tokens_for_one_more(prefilling, budget)):
            sequence, in_order = self._next_waiting(prefilling)
            if sequence is None or len(self._free_slots) <= self.num_reserved:
                return
            num_known = len(sequence.token_ids)
            # At least the last token is computed, because sampling needs its hidden state.
            hashes = sequence.block_hashes(self.kv_cache.block_size, num_known - 1)
            cached = [] if self._wants_prompt_logprobs(sequence) else self.kv_cache.match_prefix(hashes)
            missing = self.kv_cache.num_blocks_for(num_known) - len(cached)
            if missing + len(self.running) > self.kv_cache.num_available_after(cached):
                return
            self.waiting.admit(sequence)
            self._admissions_in_order = self._admissions_in_order + 1 if in_order else 0
            self.kv_cache.acquire(cached)
            sequence.block_ids = list(cached)
            sequence.num_registered_blocks = len(cached)
            sequence.num_computed_tokens = len(cached) * self.kv_cache.block_size
            if sequence.num_preemptions == 0:
                sequence.num_cached_tokens = sequence.num_computed_tokens
                self.num_prompt_tokens += sequence.num_prompt_tokens
                self.num_cached_prompt_tokens += sequence.num_cached_tokens
            sequence.slot = heapq.heappop(self._free_slots)
            sequence.move_to(_State.RUNNING)
            self.running.append(sequence)
            self._prefilling.append(sequence)
            prefilling.append(sequence)
            plan.inserts.append(
                SlotInsert(
                    sequence.slot,
                    sequence.request.request_id,
                    tuple(sequence.token_ids),
                    sequence.num_prompt_tokens,
                    sequence.num_computed_tokens,
                    sequence.request.params,
                )
            )
            plan.block_updates += [(sequence.slot, index, block) for index, block in enumerate(cached)]
            self._extend(sequence, missing, plan)
            left -= sequence.num_uncomputed_tokens

    def _has_tokens_for_one_more(self, prefilling: list[Sequence], budget: int) -> bool:
        """Whether the shortest of as many as there are free slots would find tokens beside those prompts that are no longer,
        where all of them fill the step. A longer one waits here: it holds no blocks, and may find more of itself in the cache."""
        prompts = [_prompt(s, s.num_uncomputed_tokens) for s in prefilling]
        candidates = itertools.islice(self.waiting, len(self._free_slots))
        return has_tokens_for(min(_prompt(s, self._num_missing_tokens(s)) for s in candidates), prompts, budget)

    def _num_missing_tokens(self, sequence: Sequence) -> int:
        """Tokens of a waiting request that are not in the cache now."""
        num_known, block_size = len(sequence.token_ids), self.kv_cache.block_size
        if self._wants_prompt_logprobs(sequence):
            return num_known
        return num_known - block_size * self.kv_cache.num_cached(sequence.block_hashes(block_size, num_known - 1))

    def _next_waiting(self, prefilling: list[Sequence]) -> tuple[Sequence | None, bool]:
        """Who is admitted next, and whether in order. Priorities come from clients: endless urgent requests must not starve the
        others."""
        if self._admissions_in_order + 1 >= self.oldest_first_every:
            oldest = min(self.waiting, key=lambda s: s.seniority)
            if not self._is_being_computed(oldest, prefilling):
                return oldest, False
        return next((s for s in self.waiting if not self._is_being_computed(s, prefilling)), None), True

    def _is_being_computed(self, sequence: Sequence, prefilling: list[Sequence]) -> bool:
        """A prompt that is as urgent as ``sequence`` and no longer computes its next block, which will then be in the cache:
        choices of one prompt are not computed several times because others wait behind them."""
        if not self.kv_cache.enable_prefix_caching or self._wants_prompt_logprobs(sequence):
            return False
        num_known, block_size = len(sequence.token_ids), self.kv_cache.block_size
        hashes, own = sequence.block_hashes(block_size, num_known - 1), _prompt(sequence, num_known)
        for other in prefilling:
            index = other.num_registered_blocks
            if index >= len(hashes) or _prompt(other, len(other.token_ids)) > own:
                continue
            next_hash = other.block_hashes(block_size, (index + 1) * block_size)[index:]
            if next_hash == [hashes[index]]:  # of all tokens up to the block's end
                return True
        return False

    def _extend(self, sequence: Sequence, count: int, plan: StepPlan) -> None:
        if count > 0:
            first = len(sequence.block_ids)
            sequence.block_ids += self.kv_cache.allocate(count)
            plan.block_updates += [(sequence.slot, i, sequence.block_ids[i]) for i in range(first, first + count)]

    def _launch(self, sequence: Sequence, count: int, plan: StepPlan, owners: dict[int, Sequence]) -> None:
        slot, request = sequence.slot, sequence.request
        plan.scheduled[slot] = count
        plan.request_ids[slot] = request.request_id
        owners[slot] = sequence
        if request.params.prompt_logprobs is not None and self._wants_prompt_logprobs(sequence):
            start = sequence.num_computed_tokens
            targets = tuple(request.prompt_token_ids[start + 1 : start + count + 1])
            if targets:
                plan.needs.prompt_logprobs.append(PromptLogprobs(slot, start, targets, request.params.prompt_logprobs))
        sequence.num_computed_tokens += count
        if sequence.num_computed_tokens == sequence.num_tokens:
            plan.sampling.append(slot)
            sequence.num_tokens += 1
            if not sequence.samples_plainly:
                self._add_needs(plan.needs, sequence)

    @staticmethod
    def _add_needs(needs: SamplingNeeds, sequence: Sequence) -> None:
        """Of the last token that is planned for it."""
        params = sequence.request.params
        if params.logprobs is not None:
            needs.num_logprobs = max(needs.num_logprobs, params.logprobs)
        needs.grammar |= params.is_masked
        num_output_tokens = sequence.num_tokens - 1 - sequence.num_prompt_tokens
        needs.penalties |= params.has_penalties or num_output_tokens < params.min_tokens

    @staticmethod
    def _wants_prompt_logprobs(sequence: Sequence) -> bool:
        return sequence.request.params.prompt_logprobs is not None and sequence.is_to_begin

    # Saved results.

    def _accept_plain(self, slots: list[int], tokens: list[int], owners: dict[int, Sequence], step: StepOutput) -> None:
        num_accepted, first = self._rows.accept_rows(slots, tokens, owners, step.plain)
        self.num_generated_tokens += num_accepted
        for index in first:
            sequence = owners[slots[index]]
            self._accept(sequence, SlotOutput(slots[index], sequence.request.request_id, tokens[index]), step)

    def _accept(self, sequence: Sequence, output: SlotOutput, step: StepOutput) -> None:
        """A token of which more is to be said, its first one's attempt among that."""
        request, index = sequence.request, len(sequence.token_ids) - sequence.num_prompt_tokens
        sequence.token_ids.append(output.token)
        self.num_generated_tokens += 1
        is_first = index == len(request.output_token_ids)
        matched: int | list[int] | None = output.matched_stop
        if output.finish_reason is not None:
            if output.stopped_by_sequence:
                matched = list(request.params.stop_token_seqs[output.matched_stop or 0])
            self._take_leave(sequence)
        prompt_logprobs = None
        if index == 0 and request.params.prompt_logprobs is not None:
            prompt_logprobs = [None, *sequence.prompt_logprobs]
        wanted = request.params.logprobs
        logprobs = None
        if output.logprobs is not None and wanted is not None:
            full = output.logprobs
            logprobs = [full._replace(top_ids=full.top_ids[:wanted], top_logprobs=full.top_logprobs[:wanted])]
        step.deltas.append(
            TokenDelta(
                request.request_id,
                request.attempt,
                index,
                [output.token],
                logprobs,
                output.finish_reason,
                matched,
                sequence.num_cached_tokens if is_first else 0,
                prompt_logprobs,
            )
        )

    def _take_leave(self, sequence: Sequence) -> None:
        """It has its last token."""
        if sequence.state is not _State.RUNNING:
            sequence.move_to(_State.RETIRING)
            del self._sequences[sequence.key]
            return
        # The last token's own KV was never computed.
        self._register_full_blocks(sequence, len(sequence.token_ids) - 1)
        self._give_back(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        self._finish(sequence)

    def _release_marked(self, sequence: Sequence) -> None:
        del self.leaving[sequence.slot]
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = -1
        if sequence.state is _State.RETIRING:
            sequence.move_to(_State.FINISHED)
            return
        if sequence.num_in_flight:
            raise SchedulerError(f"request {sequence.request.request_id}: marker saved before its tokens")
        sequence.move_to(_State.WAITING)
        sequence.num_computed_tokens = 0
        if sequence.num_output_tokens == 0:
            sequence.prompt_logprobs.clear()
        self.waiting.put_back(sequence)

    # Ownership.

    def _leave(self, sequence: Sequence, state: RequestState) -> None:
        """Free the blocks and keep the slot until the marker has been saved."""
        self._register_full_blocks(sequence)
        self._give_back(sequence)
        sequence.move_to(state)
        self.leaving[sequence.slot] = sequence
        if state is _State.RETIRING:
            del self._sequences[sequence.request.request_id, sequence.request.attempt]

    def _give_back(self, sequence: Sequence) -> None:
        self.kv_cache.release(sequence.block_ids)
        sequence.block_ids = []
        sequence.num_registered_blocks = 0
        self.running.remove(sequence)
        (self._decoding if sequence in self._decoding else self._prefilling).remove(sequence)

    def _finish(self, sequence: Sequence) -> None:
        sequence.move_to(_State.FINISHED)
        del self._sequences[sequence.request.request_id, sequence.request.attempt]

    def _register_full_blocks(self, sequence: Sequence, num_computed: int | None = None) -> None:
        num_computed = sequence.num_computed_tokens if num_computed is None else num_computed
        hashes = sequence.block_hashes(self.kv_cache.block_size, num_computed)
        for index in range(sequence.num_registered_blocks, len(hashes)):
            self.kv_cache.register(sequence.block_ids[index], hashes[index])
        sequence.num_registered_blocks = max(sequence.num_registered_blocks, len(hashes))

    def request_keys(self) -> Iterable[tuple[str, int]]:
        """(request id, attempt) of every live request."""
        return self._sequences.keys()

    def check_integrity(self) -> None:
        """Raise unless blocks, slots and queues agree: no leak, no double owner, nobody in two places."""
        self.kv_cache.check_integrity([s.block_ids for s in self.running])
        places = [*self.waiting, *self.running, *self.leaving.values()]
        if len({id(s) for s in places}) != len(places):
            raise SchedulerError("a sequence is in two queues")
        expected: dict[RequestState, Iterable[Sequence]] = {
            _State.WAITING: self.waiting,
            _State.RUNNING: self.running,
        }
        for state, queue in expected.items():
            if any(s.state is not state for s in queue):
                raise SchedulerError(f"a sequence in the {state.value} queue has another state")
        parts = [*self._decoding, *self._prefilling]
        if len(parts) != len(self.running) or {*parts} != {*self.running}:
            raise SchedulerError("running sequences are not those that decode and those that prefill")
        slots = sorted([*self._free_slots, *(s.slot for s in self.running), *self.leaving])
        if slots != list(range(self.max_num_seqs)):
            raise SchedulerError(f"slots are lost or owned twice: {slots}")
        live = {id(s) for s in places if s.state is not _State.RETIRING}
        if live != {id(s) for s in self._sequences.values()}:
            raise SchedulerError("a live request is in no queue, or a finished one is known")


_arrival = operator.attrgetter("arrival")
_order_of_decoding = operator.attrgetter("request.priority", "arrival")  # as ``Sequence.order``


def _prompt(sequence: Sequence, remaining: int) -> Prompt:
    return Prompt(sequence.request.priority, sequence.is_to_begin, remaining)
