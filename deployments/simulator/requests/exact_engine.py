"""An engine with the real scheduler and KV cache, and an executor that takes the time that the costs of a step say.

A step is planned when the one before has ended: the host's part of a step is hidden behind the device's, as overlap does it.
"""

from __future__ import annotations

from collections import deque

from actors.engine.simulated import SimulatedExecutor, VirtualClock
from actors.scheduling.kv_cache import KVCache
from actors.scheduling.queue_state import queue_state
from actors.scheduling.scheduler import Scheduler
from actors.scheduling.sequence import Sequence
from actors.scheduling.step_plan import StepPlan
from cluster.outputs import EngineLoad
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from cluster.scaling.balance import LINE_SHARE, BalanceView
from cluster.scaling.capacity import StepCosts
from deployments.simulator.requests.answers import Answers, Task
from deployments.simulator.setup import SimulatorSettings

# What a prompt and an answer consist of: prompts of different requests share nothing, as their salts differ.
_TOKEN = 1
# When the recording begins, in the scheduler's seconds: 0 is no time there.
_EPOCH = 1e6


class _StepTimes:
    """Seconds of a plan; knows how far each slot is, and from where on it decodes."""

    def __init__(self, costs: StepCosts, slots: int) -> None:
        self._costs = costs
        self._context, self._known = [0] * slots, [0] * slots

    def __call__(self, plan: StepPlan) -> float:
        context, known = self._context, self._known
        for insert in plan.inserts:
            context[insert.slot], known[insert.slot] = insert.num_computed_tokens, len(insert.token_ids)
        rows = looked_at = prompt_tokens = 0
        for slot, count in plan.scheduled.items():
            if context[slot] < known[slot]:
                prompt_tokens += count
            else:
                rows += 1
                looked_at += context[slot] + 1
            context[slot] += count
        costs = self._costs
        return (
            costs.step + prompt_tokens * costs.prefill_token + rows * costs.decode_row + looked_at * costs.context_token
        )


class ExactEngine:
    """One engine (``deployments.simulator.requests.fleet.Engine``).

    Args:
        name: unique in its fleet.
        now: when it begins to serve, in seconds of the recording.
    """

    def __init__(self, name: int, now: float, settings: SimulatorSettings, answers: Answers) -> None:
        self.name, self.node = name, 0
        self._settings, self._answers = settings, answers
        slots, block = settings.max_num_seqs, settings.block_size
        self._scheduler = Scheduler(
            KVCache(settings.kv_tokens // block, block),
            slots,
            settings.max_num_batched_tokens,
            settings.max_model_len,
            oldest_first_every=settings.oldest_first_every,
        )
        self._clock = VirtualClock(now)
        self._executor = SimulatedExecutor(
            self._clock,
            _StepTimes(settings.costs, slots),
            lambda request, index: _TOKEN,
            max_num_seqs=slots,
            max_model_len=settings.max_model_len,
            block_size=block,
        )
        self._inbox: deque[tuple[float, Task]] = deque()
        self._tasks: dict[str, Task] = {}
        self._num_arrived = self._num_ended = 0

    # What a fleet asks.

    @property
    def num_requests(self) -> int:
        return len(self._tasks) + len(self._inbox)

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self._scheduler.running) + self.waiting_tokens

    @property
    def waiting_tokens(self) -> int:
        on_the_way = sum(self._answers.prompts[task.request] + task.done for _, task in self._inbox)
        return sum(len(s.token_ids) for s in self._scheduler.waiting) + on_the_way

    @property
    def uncomputed_tokens(self) -> int:
        return self.waiting_tokens + self._scheduler.num_uncomputed_prompt_tokens

    @property
    def has_line(self) -> bool:
        return bool(self._scheduler.waiting)

    @property
    def is_crowded(self) -> bool:
        return self.has_line or self.open_places <= 0

    def submit(self, task: Task, at: float) -> None:
        self._inbox.append((at, task))

    def give_up(self) -> list[Task]:
        """Everything it has, for others to go on with. It must not be advanced any more."""
        tasks = [
            self._tasks[s.request.request_id]._replace(done=s.num_output_tokens)
            for s in (*self._scheduler.running, *self._scheduler.waiting)
        ]
        tasks += [task for _, task in self._inbox]
        self._tasks.clear()
        self._inbox.clear()
        return tasks

    def balance_view(self, now: float) -> BalanceView:
        waiting = list(self._scheduler.waiting)
        came = [self._came_at(s) for s in waiting]
        movable = [at for s, at in zip(waiting, came) if s.is_movable]
        return BalanceView(
            str(self.name),
            num_movable=len(movable),
            oldest_wait_s=max(0.0, now - min(movable, default=now)),
            open_places=self.open_places,
            line_length=len(movable),
            longest_wait_s=max(0.0, now - min(came, default=now)),
            line_room=int(LINE_SHARE * self._settings.max_queued_requests) - len(waiting) - len(self._inbox),
        )

    def _came_at(self, sequence: Sequence) -> float:
        return self._answers.arrived_at(self._tasks[sequence.request.request_id].request)

    @property
    def open_places(self) -> int:
        return self._scheduler.num_open_places - len(self._inbox)

    def take_waiting(self, count: int, in_line: bool = False) -> list[Task]:
        names = [s.request.request_id for s in self._scheduler.waiting if s.is_movable][:count]
        for name in names:
            self._scheduler.abort(name, 0)
        return [self._tasks.pop(name)._replace(is_moved=not in_line) for name in names]

    def told(self) -> EngineLoad:
        scheduler = self._scheduler
        state = queue_state(scheduler)
        return EngineLoad(
            free=1,
            max_queued=1,
            num_ended=self._num_ended,
            num_tokens=self.num_tokens,
            open_places=state.open_places,
            num_running=state.num_running,
            num_waiting=state.num_waiting + len(self._inbox),
            waiting_tokens=self.waiting_tokens,
            kv_tokens=state.kv_tokens,
            free_kv_tokens=state.free_kv_tokens,
            num_arrived=self._num_arrived,
            num_prompt_tokens=state.num_prompt_tokens,
            num_cached_prompt_tokens=state.num_cached_prompt_tokens,
            num_generated_tokens=state.num_generated_tokens,
            num_preemptions=state.num_preemptions,
            num_steps=state.num_steps,
            num_prefill_tokens=state.num_prefill_tokens,
            uncomputed_tokens=self.uncomputed_tokens,
        )

    def advance(self, then: float) -> None:
        """Steps until ``then``; the one that is being computed at that moment is the last."""
        while True:
            now = self._clock.now()
            while self._inbox and self._inbox[0][0] <= now:
                self._come(self._inbox.popleft()[1])
            if now >= then:
                return
            plan = self._scheduler.schedule()
            if plan is not None:
                self._take(plan)
            else:
                self._clock.wait_until(min(then, self._inbox[0][0]) if self._inbox else then)

    # Steps.

    def _come(self, task: Task) -> None:
        name, answers = str(task.request), self._answers
        self._tasks[name] = task
        self._num_arrived += 1
        self._scheduler.add_request(
            EngineRequest(
                name,
                [_TOKEN] * answers.prompts[task.request],
                SamplingParams(max_tokens=answers.outputs[task.request], ignore_eos=True),
                output_token_ids=[_TOKEN] * task.done,
                cache_salt=name,
                place=int(task.is_moved and not task.done),
                came_at=_EPOCH + answers.arrived_at(task.request),
            ),
            _EPOCH + self._clock.now(),
        )

    def _take(self, plan: StepPlan) -> None:
        result = self._executor.execute_model(plan)
        now = self._clock.now()
        # What is plain is neither the first token of an answer nor the last.
        for delta in self._scheduler.update(result).deltas:
            if delta.index == 0:
                self._answers.begun(int(delta.request_id), now)
            if delta.finish_reason is not None:
                self._num_ended += 1
                self._answers.ended(int(delta.request_id), now)
                del self._tasks[delta.request_id]
