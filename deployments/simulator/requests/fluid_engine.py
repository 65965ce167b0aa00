"""An engine by its capacity model: a step takes what its prompts, rows and context cost, and nothing is done for each token.

It follows the scheduler's rules (``actors.scheduling``) on sums: rows are known by the step that ends them, memory is a number of
tokens, and steps in which nobody's prompt is computed pass together until somebody ends or comes.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import deque
from operator import attrgetter

from actors.scheduling.prompt_shares import Prompt, has_tokens_for, prompt_shares
from cluster.outputs import EngineLoad
from cluster.scaling.balance import LINE_SHARE, BalanceView
from deployments.simulator.requests.answers import Answers, Task
from deployments.simulator.setup import SimulatorSettings


class _Prompt:
    """A request that waits or whose prompt is computed: ``remaining`` tokens of ``known``. ``whole`` is what it asks for while it
    waits, where all of it remains: a long line is looked at in every step. ``turn`` is its order there: answers in the middle,
    then those for whom a place was kept, then the others by age. ``first_step`` is the first step with it here."""

    __slots__ = ("first_step", "known", "order", "remaining", "task", "turn", "whole")

    def __init__(self, task: Task, known: int, order: int, came_at: float, first_step: int) -> None:
        self.task, self.known, self.remaining, self.order = task, known, known, order
        self.first_step = first_step
        self.turn = not task.done, -1.0 if task.done or task.is_moved else came_at, order
        self.whole = _share_of(self)

    @property
    def is_movable(self) -> bool:
        return not self.task.done and not self.task.is_moved


_WHOLE, _TURN = attrgetter("whole"), attrgetter("turn")


class FluidEngine:
    """One engine (``deployments.simulator.requests.fleet.Engine``).

    Args:
        name: unique in its fleet.
        now: when it begins to serve, in seconds of the recording.
    """

    # fmt: off
    __slots__ = (
        "_answers",
        "_block",
        "_clock",
        "_context",
        "_ended",
        "_generated",
        "_inbox",
        "_last_turn",
        "_num_in_order",
        "_num_prefill_tokens",
        "_num_prompt_tokens",
        "_number",
        "_prefilling",
        "_rows",
        "_settings",
        "_step",
        "_turns",
        "_used",
        "_waiting",
        "_waiting_tokens",
        "name",
        "node",
    )
    # fmt: on

    def __init__(self, name: int, now: float, settings: SimulatorSettings, answers: Answers) -> None:
        self.name, self.node = name, 0
        self._settings, self._answers = settings, answers
        self._block = settings.block_size
        self._clock, self._step = now, 0
        self._inbox: deque[tuple[float, Task]] = deque()
        self._waiting: list[_Prompt] = []
        self._turns: list[int] = []  # of those who wait to have them
        self._prefilling: list[_Prompt] = []
        # (step that ends it, order, request, tokens at the first step that it decodes in, that step, its first here) as a heap.
        self._rows: list[tuple[int, int, Task, int, int, int]] = []
        self._context = 0  # tokens that the rows look back at
        self._used = 0  # tokens of memory that somebody owns, in whole blocks for prompts
        self._waiting_tokens = 0  # of who waits or is on the way
        self._last_turn = self._number = self._num_in_order = self._ended = self._generated = (
            self._num_prompt_tokens
        ) = self._num_prefill_tokens = 0

    # What a fleet asks.

    @property
    def num_requests(self) -> int:
        return len(self._rows) + len(self._prefilling) + len(self._waiting) + len(self._inbox)

    @property
    def num_tokens(self) -> int:
        return self._context + sum(p.known for p in self._prefilling) + self.waiting_tokens

    @property
    def waiting_tokens(self) -> int:
        return self._waiting_tokens

    @property
    def uncomputed_tokens(self) -> int:
        return self._waiting_tokens + sum(p.remaining for p in self._prefilling)

    @property
    def has_line(self) -> bool:
        return bool(self._waiting)

    @property
    def is_crowded(self) -> bool:
        return self.has_line or self.open_places <= 0

    def submit(self, task: Task, at: float) -> None:
        self._inbox.append((at, task))
        self._waiting_tokens += self._answers.prompts[task.request] + task.done

    def give_up(self) -> list[Task]:
        """Everything it has, for others to go on with."""
        tasks = [task for _, _, task in self._progress()]
        tasks += [prompt.task for prompt in (*self._prefilling, *self._waiting)]
        tasks += [task for _, task in self._inbox]
        self._rows, self._prefilling, self._waiting, self._turns = [], [], [], []
        self._inbox.clear()
        self._context = self._used = self._waiting_tokens = 0
        return tasks

    def balance_view(self, now: float) -> BalanceView:
        waiting, arrived_at = self._waiting, self._answers.arrived_at
        # Those that may move stand behind those that may not, by age.
        first = self._num_before_turns()
        came = [arrived_at(prompt.task.request) for prompt in waiting[: first + 1]]
        oldest = came[-1] if first < len(waiting) else now
        return BalanceView(
            str(self.name),
            num_movable=(length := len(waiting) - first),
            oldest_wait_s=max(0.0, now - oldest),
            open_places=self.open_places,
            line_length=length,
            longest_wait_s=max(0.0, now - min(came, default=now)),
            line_room=int(LINE_SHARE * self._settings.max_queued_requests) - len(waiting) - len(self._inbox),
        )

    def take_waiting(self, count: int, in_line: bool = False) -> list[Task]:
        first = self._num_before_turns()
        del self._turns[:count]
        taken = self._waiting[first : first + count]
        del self._waiting[first : first + count]
        self._waiting_tokens -= sum(prompt.known for prompt in taken)
        return [prompt.task._replace(is_moved=not in_line) for prompt in taken]

    def told(self) -> EngineLoad:
        return EngineLoad(
            free=1,
            max_queued=1,
            num_ended=self._ended,
            num_tokens=self.num_tokens,
            num_running=len(self._rows) + len(self._prefilling),
            num_waiting=len(self._waiting) + len(self._inbox),
            waiting_tokens=self._waiting_tokens,
            kv_tokens=self._settings.kv_tokens,
            free_kv_tokens=max(0, self._settings.kv_tokens - self._used),
            num_arrived=self._number,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._generated,
            num_steps=self._step,
            num_prefill_tokens=self._num_prefill_tokens,
            uncomputed_tokens=self.uncomputed_tokens,
        )

    def advance(self, then: float) -> None:
        """Steps until ``then``; the one that is being computed at that moment is the last."""
        while True:
            while self._inbox and self._inbox[0][0] <= self._clock:
                self._come(self._inbox.popleft()[1])
            if self._clock >= then:
                return
            if self._waiting:
                self._admit()
            if self._prefilling:
                self._mixed_step()
            elif self._rows:
                self._decode_until(min(then, self._inbox[0][0]) if self._inbox else then)
            elif self._inbox and self._inbox[0][0] < then:
                self._clock = self._inbox[0][0]
            else:
                self._clock = then

    # Steps.

    def _come(self, task: Task) -> None:
        known = self._answers.prompts[task.request] + task.done
        prompt = self._prompt(task, known, self._number, self._step)
        self._number += 1
        if prompt.is_movable:
            # As ``WaitingQueue`` has it: rounds begin anew when nobody waits.
            self._last_turn = self._last_turn + 1 if self._waiting else 0
            self._turns.append(self._last_turn)
        bisect.insort(self._waiting, prompt, key=_TURN)

    def _prompt(self, task: Task, known: int, order: int, first_step: int) -> _Prompt:
        return _Prompt(task, known, order, self._answers.arrived_at(task.request), first_step)

    @property
    def open_places(self) -> int:
        running = len(self._rows) + len(self._prefilling)
        if self._used + self._block * (running + 1) > self._settings.kv_tokens:
            return 0
        return max(0, self._settings.max_num_seqs - running - len(self._waiting)) - len(self._inbox)

    def _budget(self) -> int:
        return self._settings.max_num_batched_tokens - len(self._rows)

    def _admit(self) -> None:
        settings, prefilling = self._settings, self._prefilling
        budget = self._budget()
        left = budget - sum(p.remaining for p in prefilling)
        while self._waiting:
            running = len(self._rows) + len(prefilling)
            free = settings.max_num_seqs - running
            if free <= 0 or (left <= 0 and not self._has_tokens_for_one_more(free, budget)):
                return
            place = self._next_waiting()
            prompt = self._waiting[place]
            blocks = -(-prompt.known // self._block) * self._block
            if running and self._used + blocks + self._block * running > settings.kv_tokens:
                return
            self._take_turn(prompt, place)
            del self._waiting[place]
            self._num_in_order = 0 if self._is_turn_of_oldest else self._num_in_order + 1
            bisect.insort(prefilling, prompt, key=_TURN)
            self._used += blocks
            self._num_prompt_tokens += prompt.known
            self._waiting_tokens -= prompt.known
            left -= prompt.remaining

    def _take_turn(self, prompt: _Prompt, place: int) -> None:
        """From now on it is computed by its turn, which those in line have by age."""
        if prompt.is_movable:
            turn = self._turns.pop(place - self._num_before_turns())
            prompt.turn = True, float(turn), prompt.order

    def _num_before_turns(self) -> int:
        """Those in line who have had their turn; they stand before all others."""
        return next((i for i, prompt in enumerate(self._waiting) if prompt.is_movable), len(self._waiting))

    @property
    def _is_turn_of_oldest(self) -> bool:
        return self._num_in_order + 1 >= self._settings.oldest_first_every

    def _next_waiting(self) -> int:
        """Where who is admitted next stands: the first, or now and then the one that came first."""
        waiting, arrived_at = self._waiting, self._answers.arrived_at
        if not self._is_turn_of_oldest or waiting[0].is_movable:
            return 0
        # Behind those that may not move the first is the oldest.
        end = min(self._num_before_turns() + 1, len(waiting))
        return min(range(end), key=lambda i: (arrived_at(waiting[i].task.request), waiting[i].order))

    def _has_tokens_for_one_more(self, free: int, budget: int) -> bool:
        least = min(map(_WHOLE, self._waiting[:free]))
        return has_tokens_for(least, map(_share_of, self._prefilling), budget)

    def _mixed_step(self) -> None:
        costs, prefilling, rows = self._settings.costs, self._prefilling, self._rows
        num_rows, budget = len(rows), self._budget()
        if len(prefilling) == 1:
            shares = [min(prefilling[0].remaining, budget)]
        elif sum(p.remaining for p in prefilling) <= budget:
            shares = [p.remaining for p in prefilling]
        else:
            steps = [self._step + 1 - p.first_step for p in prefilling]
            shares = prompt_shares([_share_of(p) for p in prefilling], steps, budget)
        computed = sum(shares)
        self._num_prefill_tokens += computed
        self._pass(
            1,
            costs.step
            + num_rows * costs.decode_row
            + costs.context_token * self._context
            + costs.prefill_token * computed,
        )
        for prompt, share in zip(prefilling, shares):
            prompt.remaining -= share
        if not all(p.remaining for p in prefilling):
            done = [p for p in prefilling if not p.remaining]
            self._prefilling = [p for p in prefilling if p.remaining]
            for prompt in done:
                self._first_token(prompt)
        self._end_rows()

    def _first_token(self, prompt: _Prompt) -> None:
        index, done, _ = prompt.task
        self._answers.begun(index, self._clock)
        self._generated += 1
        left = self._answers.outputs[index] - done - 1
        if left <= 0:
            self._used -= -(-prompt.known // self._block) * self._block
            self._ended += 1
            self._answers.ended(index, self._clock)
            return
        row = self._step + left, prompt.order, prompt.task, prompt.known + 1, self._step, prompt.first_step
        heapq.heappush(self._rows, row)
        self._context += prompt.known + 1

    def _decode_until(self, limit: float) -> None:
        """Steps in which every row gets a token, to the first end, to ``limit``, or until memory is short."""
        costs, num_rows = self._settings.costs, len(self._rows)
        room = (self._settings.kv_tokens - self._used) // num_rows
        if room < 1 and num_rows > 1:
            self._preempt()
            return
        first = costs.step + num_rows * costs.decode_row + costs.context_token * self._context
        growth = costs.context_token * num_rows
        steps = min(self._rows[0][0] - self._step, max(room, 1))
        if first * steps > limit - self._clock:
            # Each step is longer than the one before by ``growth``: the smallest number that reaches the limit.
            half = first - growth / 2
            root = math.sqrt(half * half + 2 * growth * (limit - self._clock)) if growth > 0 else 0.0
            needed = (root - half) / growth if growth > 1e-15 else (limit - self._clock) / first
            steps = min(steps, max(1, math.ceil(needed - 1e-9)))
        self._pass(steps, steps * first + growth * steps * (steps - 1) / 2)
        self._end_rows()

    def _pass(self, steps: int, seconds: float) -> None:
        tokens = steps * len(self._rows)
        self._clock += seconds
        self._step += steps
        self._context += tokens
        self._used += tokens
        self._generated += tokens

    def _end_rows(self) -> None:
        rows = self._rows
        while rows and rows[0][0] <= self._step:
            _, _, task, tokens, begun, _ = heapq.heappop(rows)
            self._drop(tokens, begun)
            self._ended += 1
            self._answers.ended(task.request, self._clock)

    def _drop(self, tokens: int, begun: int) -> None:
        """A row's context and memory are free."""
        decoded = self._step - begun
        self._context -= tokens + decoded
        self._used -= -(-(tokens - 1) // self._block) * self._block + decoded

    def _preempt(self) -> None:
        """The row that came last waits again, before those to begin."""
        victim = max(self._rows, key=lambda row: row[1])
        self._rows.remove(victim)
        heapq.heapify(self._rows)
        _, order, task, tokens, begun, first_step = victim
        self._drop(tokens, begun)
        done = task.done + 1 + self._step - begun
        known = self._answers.prompts[task.request] + done
        waits = self._prompt(Task(task.request, done, task.is_moved), known, order, first_step)
        bisect.insort(self._waiting, waits, key=_TURN)
        self._waiting_tokens += known

    def _progress(self) -> list[tuple[int, int, Task]]:
        return [
            (end, order, Task(task.request, task.done + 1 + self._step - begun, task.is_moved))
            for end, order, task, _, begun, _ in self._rows
        ]


def _share_of(prompt: _Prompt) -> Prompt:
    return Prompt(0, not prompt.task.done, prompt.remaining)
