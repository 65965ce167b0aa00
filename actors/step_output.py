"""One step's own object: what goes to the device, what comes back, and the event between them.

Two exist and alternate. Everything that saving a step reads lives here, because the next step has already changed the
runner's live state by then; everything that the device reads of a launched step lives here too, and is written again
only after the step has been saved.
"""

from __future__ import annotations

import numpy as np
import paddle

from actors.host_tensor import HostBuffer
from actors.slot_insert import pack_inserts
from actors.step_plan import StepPlan
from cluster.outputs import TokenLogprobs
from cluster.sampling_params import MAX_LOGPROBS
from gpu_ops.host_flag import event_record, event_wait
from gpu_ops.step_result import landing_size


class StepOutput:
    """Buffers of one step in flight.

    Attributes:
        plan: the step, or None while the object is free.
        num_tokens: tokens of the step, kept after it was saved.
        scheduled, cleared: int32 [B] staging buffers.
        block_updates, insert_ints, insert_floats, insert_tokens: staging tensors of this step's own size.
        landing: int64 block that the device packs its results into.
        prompt_logprobs: slot to scored prompt positions, filled by the device stream.
        error: what went wrong on the device stream; raised when the step is saved.
        launched_at, device_start, device_end, saved_at: ``time.perf_counter`` stamps, in seconds; device_start is 0 before
            the device begins.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self.plan: StepPlan | None = None
        self.num_tokens = 0
        self.scheduled = HostBuffer([max_num_seqs], "int32")
        self.cleared = HostBuffer([max_num_seqs], "int32")
        self.landing = HostBuffer([landing_size(max_num_seqs, MAX_LOGPROBS)], "int64")
        self._no_updates = paddle.to_tensor(np.zeros((0, 3), np.int32))
        self.block_updates = self._no_updates
        self.insert_ints: paddle.Tensor
        self.insert_floats: paddle.Tensor
        self.insert_tokens: paddle.Tensor
        self.prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        self.error: BaseException | None = None
        self.launched_at = self.device_start = self.device_end = self.saved_at = 0.0
        self._event = HostBuffer([1], "int64")
        self._ticket = 0

    def begin(self, plan: StepPlan, eos_token_ids: tuple[int, ...]) -> None:
        """Take a plan and stage what the device needs of it."""
        if self.plan is not None:
            raise RuntimeError(f"step {self.plan.step} has not been saved yet")
        self.plan = plan
        self.num_tokens = plan.num_tokens
        self.device_start = 0.0
        self.prompt_logprobs = {}
        self.error = None
        self._ticket += 1
        self.scheduled.array[:] = 0
        self.cleared.array[:] = 0
        for slot, count in plan.scheduled.items():
            self.scheduled.array[slot] = count
        self.cleared.array[plan.preempted] = 1
        self.block_updates = self._no_updates
        if plan.block_updates:
            self.block_updates = paddle.to_tensor(np.asarray(plan.block_updates, dtype=np.int32))
        if plan.inserts:
            staged = pack_inserts(plan.inserts, eos_token_ids)
            self.insert_ints, self.insert_floats, self.insert_tokens = map(paddle.to_tensor, staged)

    def record(self) -> None:
        """On the device stream: everything of this step is in the landing block."""
        event_record(self._event.tensor, self._ticket)

    def wait(self) -> None:
        """On the host: block until ``record`` ran, without the interpreter lock. Raises what the device stream raised."""
        event_wait(self._event.tensor, self._ticket)
        if self.error is not None:
            raise self.error
