"""An executor without a device: steps take the time that a function says, on the host's clock or one that only they move.

What a device decides about slots (which tokens a step computes, who stops and why, who pauses for a block) is decided here by the
same rules, so the scheduler above cannot tell the two apart. Tokens come from a function: of a recording, or random. Loads no
Paddle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.engine.clock import WaitingClock
from actors.runner.step_executor import StepExecutor
from actors.scheduling.step_plan import SlotInsert, SlotOutput, StepPlan, StepResult
from cluster.outputs import FINISH_LENGTH, FINISH_STOP, NO_TOKEN, PREEMPTED, TokenLogprobs
from cluster.sampling_params import SamplingParams

# The token of a request behind so many generated ones.
NextToken = Callable[[str, int], int]
# Seconds that the device takes for a step.
StepTime = Callable[[StepPlan], float]


class VirtualClock:
    """Time that passes only when somebody waits."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += max(0.0, seconds)

    def wait_until(self, then: float) -> None:
        """Nothing happens if that is past."""
        self._now = max(self._now, then)


@dataclass(slots=True)
class SimulatedStep:
    """A step in flight and its times (``actors.runner.step_executor.LaunchedStep``)."""

    plan: StepPlan
    num_tokens: int
    staged_from: float
    launched_at: float
    enqueued_at: float
    begins_at: float
    ends_at: float
    device_start: float = 0.0  # with the next one 0 until it was saved: what a host knows of a device
    device_end: float = 0.0
    waited_from: float = 0.0
    waited_at: float = 0.0
    saved_at: float = 0.0
    forward_end: float = 0.0
    tokens: dict[int, int] = field(default_factory=dict)  # by slot, where nothing else is said
    outputs: dict[int, SlotOutput] = field(default_factory=dict)


@dataclass(slots=True)
class _Slot:
    """What a device knows of the request in a slot."""

    request_id: str
    params: SamplingParams
    num_prompt: int
    generated: list[int]
    num_computed: int
    blocks: set[int] = field(default_factory=set)
    stopped: bool = False

    @property
    def num_left(self) -> int:
        return self.num_prompt + len(self.generated) - self.num_computed


class SimulatedExecutor(StepExecutor):
    """Computes steps in the time that they are said to take.

    Args:
        clock: at the end of each step that is saved, or moved there if it is virtual.
        step_time: seconds of the device for a plan.
        next_token: what a request's n-th sampled token is.
        max_num_seqs, max_model_len, block_size: as of the scheduler.
        eos_token_ids: tokens that end a request unless it ignores them.
    """

    device_name = "simulated"

    def __init__(
        self,
        clock: WaitingClock,
        step_time: StepTime,
        next_token: NextToken,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        self.last_saved: SimulatedStep | None = None
        self._clock = clock
        self._step_time = step_time
        self._next_token = next_token
        self._max_model_len = max_model_len
        self._block_size = block_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._slots: list[_Slot | None] = [None] * max_num_seqs
        self._in_flight: deque[SimulatedStep] = deque()
        self._device_free_at = clock.now()

    def launch_forward(self, plan: StepPlan) -> None:
        now = self._clock.now()
        start = max(now, self._device_free_at)
        self._device_free_at = start + self._step_time(plan)
        self._in_flight.append(SimulatedStep(plan, plan.num_tokens, now, now, now, start, self._device_free_at))
        for insert in plan.inserts:
            self._slots[insert.slot] = _entered(insert)
        for slot in plan.preempted:
            self._slots[slot] = None
        for slot, index, _ in plan.block_updates:
            if (state := self._slots[slot]) is not None:
                state.blocks.add(index)

    def launch_sampling(self) -> None:
        step = self._in_flight[-1]
        for slot, wanted in step.plan.scheduled.items():
            state = self._slots[slot]
            if state is None or state.stopped or (count := min(wanted, state.num_left)) <= 0:
                continue
            last = state.num_computed + count - 1
            if not all(
                i in state.blocks for i in range(state.num_computed // self._block_size, last // self._block_size + 1)
            ):
                continue  # paused until its next block is there
            state.num_computed += count
            scored = [
                [TokenLogprobs(0.0, 1, [], [])] * len(wanted.targets)
                for wanted in step.plan.needs.prompt_logprobs
                if wanted.slot == slot
            ]
            if state.num_left == 0:
                self._sample(slot, state, step)
            if scored:
                token = step.tokens.pop(slot, NO_TOKEN)
                before = step.outputs.get(slot, SlotOutput(slot, state.request_id, token))
                step.outputs[slot] = before._replace(prompt_logprobs=scored[0])

    def save_output(self) -> StepResult:
        step = self._in_flight.popleft()
        step.waited_from = self._clock.now()
        self._clock.wait_until(step.ends_at)
        step.waited_at = step.saved_at = self._clock.now()
        step.device_start, step.device_end = step.begins_at, step.ends_at
        self.last_saved = step
        outputs, preempted = [], set(step.plan.preempted)
        for slot, request_id in step.plan.request_ids.items():
            if slot in preempted:
                outputs.append(SlotOutput(slot, request_id, PREEMPTED))
            elif slot not in step.tokens:
                outputs.append(step.outputs.get(slot, SlotOutput(slot, request_id, NO_TOKEN)))
        return StepResult(step.plan.step, list(step.tokens), list(step.tokens.values()), outputs)

    def discard_in_flight(self) -> None:
        self._in_flight.clear()

    def close(self) -> None:
        self.discard_in_flight()

    def has_in_flight(self) -> bool:
        return bool(self._in_flight)

    @property
    def step_in_flight(self) -> SimulatedStep | None:
        return self._in_flight[0] if self._in_flight else None

    def check_idle(self) -> None:
        running = [slot for slot, state in enumerate(self._slots) if state is not None and not state.stopped]
        if running:
            raise RuntimeError(f"slots {running} still run, the scheduler has none")

    def figures(self) -> dict[str, Any]:
        return {"device": self.device_name, "dtype": "none", "batch_invariant": True}

    def align_clocks(self) -> None:
        """There is one clock."""

    def free_clocks(self) -> None:
        """There is one clock."""

    def _sample(self, slot: int, state: _Slot, step: SimulatedStep) -> None:
        token = self._next_token(state.request_id, len(state.generated))
        state.generated.append(token)
        reason, matched, by_sequence = self._stop(state)
        state.stopped = reason is not None
        wanted = state.params.logprobs
        if reason is None and wanted is None:
            step.tokens[slot] = token
            return
        logprobs = None if wanted is None else TokenLogprobs(0.0, 1, [0] * wanted, [0.0] * wanted)
        step.outputs[slot] = SlotOutput(slot, state.request_id, token, reason, matched, by_sequence, logprobs)

    def _stop(self, state: _Slot) -> tuple[str | None, int | None, bool]:
        """(finish reason, what matched, whether that is the index of a stop sequence), as ``gpu_ops.twins.state`` has it."""
        params, generated = state.params, state.generated
        token = generated[-1]
        if len(generated) > params.min_tokens:
            if token in self._eos_token_ids and not params.ignore_eos:
                return FINISH_STOP, token, False
            if token in params.stop_token_ids:
                return FINISH_STOP, token, False
            for index, sequence in enumerate(params.stop_token_seqs):
                if sequence and tuple(generated[-len(sequence) :]) == sequence:
                    return FINISH_STOP, index, True
        if len(generated) >= params.max_tokens or state.num_prompt + len(generated) >= self._max_model_len:
            return FINISH_LENGTH, None, False
        return None, None, False


def _entered(insert: SlotInsert) -> _Slot:
    return _Slot(
        insert.request_id,
        insert.params,
        insert.num_prompt_tokens,
        list(insert.token_ids[insert.num_prompt_tokens :]),
        insert.num_computed_tokens,
    )
