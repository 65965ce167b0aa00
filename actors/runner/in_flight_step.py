"""One step's own object: what goes to the device, what comes back, and the event between them.

Two exist and alternate. Everything that saving a step reads lives here, because the next step has already changed the
runner's live state by then; everything that the device reads of a launched step lives here too, and is written again
only after the step has been saved.
"""

from __future__ import annotations

import time

import numpy as np
import paddle

from actors.device.cpu import CpuDevice
from actors.device.host_tensor import fill_with_poison
from actors.runner.mask_filling import MaskFilling
from actors.runner.shared_masks import SharedMasks
from actors.runner.slot_insert import pack_inserts, power_of_two
from actors.runner.staging_buffers import StagingBuffers
from actors.scheduling.step_plan import StepPlan
from actors.structured_output.thinking import Matcher
from cluster.outputs import TokenLogprobs
from cluster.sampling_params import MAX_LOGPROBS
from gpu_ops.host_flag import copy_async, event_record, event_wait
from gpu_ops.sampling import mask_words
from gpu_ops.step_result import landing_size


class InFlightStep:
    """Buffers of one step in flight.

    Args:
        shares_masks: the compute threads make masks beside the forward.

    Attributes:
        plan: the step, or None while the object is free.
        num_tokens: tokens of the step, kept after it was saved.
        num_samples: how many of its rows sample, an upper bound on a GPU; known on the device stream alone.
        scheduled, cleared: int32 [B] staging buffers.
        block_updates, insert_ints, insert_floats, insert_tokens: staged for this step, of its own sizes.
        token_masks: int32 [B, 1 + words], which tokens the slots with a grammar or a budget may take; the host writes it between
            launching the forward and the sampling.
        mask_tensor: where the device reads them.
        matchers: slots that sample under a grammar or a budget in this step, with where in it they stand; the step's tokens are
            told to them when it is saved.
        packed: int64 block that the device packs its results into.
        landing: where the host reads them; the same memory on the CPU.
        prompt_logprobs: slot to scored prompt positions, filled by the device stream.
        error: what went wrong on the device stream; raised when the step is saved.
        staged_from, launched_at, enqueued_at, waited_from, waited_at, saved_at: ``time.perf_counter`` stamps of the host,
            in seconds.
        forward_end: likewise of the device stream, when what it was given as the forward had run there.
        timer: the device's own stamps.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, device: CpuDevice, shares_masks: bool) -> None:
        self._device = device
        self.plan: StepPlan | None = None
        self.num_tokens = 0
        self.num_samples = 0
        self.scheduled = device.host_buffer([max_num_seqs], "int32")
        self.cleared = device.host_buffer([max_num_seqs], "int32")
        self.token_masks = device.host_buffer([max_num_seqs, mask_words(vocab_size)], "int32")
        self._shared_masks = SharedMasks(self.token_masks.array) if shares_masks else None
        self.mask_tensor = device.input_block(self.token_masks)
        self._masks_are_set = False  # those that the step before left; a row is far from the next one
        self.matchers: dict[int, Matcher] = {}
        self.landing = device.host_buffer([landing_size(max_num_seqs, MAX_LOGPROBS)], "int64")
        self.packed = device.packed_outputs(self.landing)
        self._no_updates = paddle.to_tensor(np.zeros((0, 3), np.int32), place=paddle.CPUPlace())
        self.block_updates = self._no_updates
        self._staging = StagingBuffers(device)
        self.insert_ints: paddle.Tensor
        self.insert_floats: paddle.Tensor
        self.insert_tokens: paddle.Tensor
        self.prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        self.error: BaseException | None = None
        self.staged_from = self.launched_at = self.enqueued_at = 0.0
        self.forward_end = 0.0
        self.waited_from = self.waited_at = self.saved_at = 0.0
        self.timer = device.make_timer()
        self._event = device.event_cell()
        self._ticket = 0

    def begin(self, plan: StepPlan, eos_token_ids: tuple[int, ...], matchers: dict[int, Matcher]) -> None:
        """Take a plan and stage what the device needs of it."""
        if self.plan is not None:
            raise RuntimeError(f"step {self.plan.step} has not been saved yet")
        self.staged_from = time.perf_counter()
        self.plan = plan
        self.num_tokens = plan.num_tokens
        self.timer.reset()
        self.forward_end = 0.0
        self.prompt_logprobs = {}
        self.matchers = matchers
        if self._masks_are_set:
            self.token_masks.array[:, 0] = 0
            self._masks_are_set = False
        self.error = None
        self._ticket += 1
        self.scheduled.array[:] = 0
        self.cleared.array[:] = 0
        self.scheduled.array[list(plan.scheduled)] = list(plan.scheduled.values())
        self.cleared.array[plan.preempted] = 1
        self.block_updates = self._no_updates
        stage = self._staging.stage
        if plan.block_updates:
            # The last one again and again, which changes nothing, so that there are few sizes.
            count = len(plan.block_updates)
            updates = plan.block_updates + plan.block_updates[-1:] * (power_of_two(count) - count)
            self.block_updates = stage("block_updates", np.asarray(updates, dtype=np.int32))
        if plan.inserts:
            ints, floats, tokens = pack_inserts(plan.inserts, eos_token_ids)
            self.insert_ints, self.insert_floats = stage("insert_ints", ints), stage("insert_floats", floats)
            self.insert_tokens = stage("insert_tokens", tokens)

    def fill_masks(self, filling: MaskFilling) -> None:
        """On the host, once the matchers know every token before this step. They are there behind ``finish_masks``, and the
        matchers are left alone until ``wait``."""
        self._masks_are_set = bool(self.matchers)
        if self._shared_masks is None:
            filling.fill(self.matchers, self.token_masks.array)
        else:
            self._shared_masks.start(self.matchers)

    def finish_masks(self) -> None:
        """On the device stream, once for each ``fill_masks``."""
        if self._shared_masks is not None:
            self._shared_masks.finish()

    def send_masks(self) -> None:
        """On the device stream."""
        if self.mask_tensor is not self.token_masks.tensor:
            copy_async(self.mask_tensor, self.token_masks.tensor)

    @property
    def device_start(self) -> float:
        """When the device began, in seconds of ``time.perf_counter``; 0 while that is not known."""
        return self.timer.start

    @property
    def device_end(self) -> float:
        """When the device was done with it."""
        return self.timer.end

    def record(self) -> None:
        """On the device stream: everything of this step is packed, and once the event comes it has landed."""
        self.timer.mark_end()
        if self.packed is not self.landing.tensor:
            copy_async(self.landing.tensor, self.packed)
        event_record(self._event, self._ticket)

    def release(self, poison: bool) -> None:
        """The step was saved or dropped: its buffers belong to the next one. ``poison`` makes a late reader notice."""
        self.plan = None
        self.matchers = {}
        staged = self._staging.release()
        if poison:
            self._masks_are_set = True
            for array in (*(b.array for b in (self.scheduled, self.cleared, self.landing, self.token_masks)), *staged):
                fill_with_poison(array)

    def wait(self) -> None:
        """On the host: block until ``record`` ran, without the interpreter lock. Raises what the device stream raised."""
        self.waited_from = time.perf_counter()
        event_wait(self._event, self._ticket)
        self.timer.finish()
        self.waited_at = time.perf_counter()
        if self.error is not None:
            raise self.error
