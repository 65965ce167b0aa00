"""One GPU's (or the CPU's) model runner: three stages a step, in order or overlapped.

| stage | runs on | does |
|---|---|---|
| ``_preprocess_and_execute_model(N)`` | device stream | staged writes, packing of the step's tokens, forward, last-token gather |
| ``_postprocess(N)`` | device stream | head, penalties, sampling, stops, ``update_inputs``, packing, event |
| ``_save_output(N)`` | host | waits for the event, says of each slot what there is to say, then resets ``preempted_idx`` |

``execute_model`` and ``execute_model_overlap`` (``actors.runner.step_executor``) put them in order. Overlapped, what the host
does for N-1 (emitting, planning N+1) runs while the device computes N. Given the same plans, both give the same bits.
Concept: FastDeploy's overlapped model runner; here every step in flight has its own output object.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import paddle

from actors.models.decoder import BatchRows, Decoder
from actors.runner.graph_capture import GraphCapture
from actors.runner.in_flight_step import InFlightStep
from actors.runner.mask_filling import MaskFilling, spare_threads
from actors.runner.sampler import Sampler, SamplingGraph
from actors.runner.shared_masks import compute_threads_make_masks
from actors.runner.step_executor import StepExecutor
from actors.runner.step_graphs import PromptSize, StepGraphs, decode_sizes, prompt_sizes
from actors.scheduling.step_plan import SlotOutput, StepPlan, StepResult
from actors.scheduling.step_rows import step_rows
from actors.structured_output.grammars import Grammars
from actors.structured_output.thinking import Matcher
from cluster.outputs import FINISH_LENGTH, FINISH_STOP, NO_TOKEN, PREEMPTED, TokenLogprobs
from cluster.process.cache import Progress
from gpu_ops import state
from gpu_ops.forward import get_num_threads
from gpu_ops.host_flag import get_stop
from gpu_ops.slots.share_inputs import allocate_share_inputs
from gpu_ops.step_result import PackedStep, StopReason, unpack_outputs


class ModelRunner(StepExecutor):
    """Device state, KV cache and model of one rank; driven by plans, knows nothing of requests' lives.

    Args:
        model: weights and forward pass.
        max_num_seqs: slots.
        max_model_len: longest prompt plus output.
        max_num_batched_tokens: most tokens in a step.
        num_blocks, block_size: KV cache.
        eos_token_ids: the model's end-of-sequence tokens.
        processed_logprobs: as of ``Sampler``.
        grammars: says which tokens requests with a grammar or a budget may have; None: no request has one.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_num_batched_tokens: int,
        num_blocks: int,
        block_size: int,
        eos_token_ids: tuple[int, ...],
        processed_logprobs: bool = False,
        grammars: Grammars | None = None,
    ) -> None:
        self.model = model
        self.grammars = grammars
        # Where in its grammar or reasoning the request stands that is in a slot; follows from the tokens alone.
        self._matchers: dict[int, Matcher] = {}
        self._mask_filling = MaskFilling(spare_threads(model.device.is_gpu))
        self.eos_token_ids = eos_token_ids
        self.device = device = model.device
        self.stream = device.make_stream()
        self.max_num_seqs = max_num_seqs
        self.share_inputs = allocate_share_inputs(max_num_seqs, max_model_len, block_size, device.place)
        self.kv_cache = model.allocate_kv_cache(num_blocks, block_size)
        self.ids_remove_padding = device.tensor(np.zeros(max_num_batched_tokens, np.int64))
        self.positions = device.tensor(np.zeros(max_num_batched_tokens, np.int32))
        self.batch_id_per_token = device.tensor(np.zeros(max_num_batched_tokens, np.int32))
        self.cu_seqlens_q = device.tensor(np.zeros(max_num_seqs + 1, np.int32))
        self.sample_rows = device.tensor(np.zeros(max_num_seqs, np.int32))
        self.sample_slots = device.tensor(np.zeros(max_num_seqs, np.int32))
        self.counts = device.tensor(np.zeros(2, np.int32))
        self.sampler = Sampler(model, self.share_inputs, self.sample_rows, self.sample_slots, processed_logprobs)
        # The step that carries a slot's PREEMPTED marker. A number, not a flag: the previous step's real token may still
        # be in flight when the marker is set.
        self.preempted_idx = np.full(max_num_seqs, -1, np.int64)
        shares_masks = compute_threads_make_masks(device.is_gpu, get_num_threads())
        vocab_size = model.config.vocab_size
        self._free_outputs = [InFlightStep(max_num_seqs, vocab_size, device, shares_masks) for _ in range(2)]
        self._in_flight: list[InFlightStep] = []
        self._hidden: paddle.Tensor | None = None
        self.graphs: StepGraphs | None = None
        self.last_saved: InFlightStep | None = None
        self.device_name = device.name
        # Bytes of a GPU by what holds them; who loads the model knows.
        self.memory_shares: dict[str, int] = {}
        # For tests: what a step left in its host buffers is destroyed when the step gives them back.
        self.poison_released = False

    def capture_graphs(self, progress: Progress | None, max_bytes: int) -> None:
        """On a GPU, before the first step: replay captured graphs, of at most ``max_bytes``, where they are faster."""
        self.stream.run(lambda: self._capture(progress, max_bytes))

    def is_idle(self) -> bool:
        """No step in flight, and the device's last report says that no slot runs."""
        return not self._in_flight and not get_stop(self.share_inputs.not_need_stop)

    def has_in_flight(self) -> bool:
        return bool(self._in_flight)

    @property
    def step_in_flight(self) -> InFlightStep | None:
        """The step that was launched and not saved; None if there is none."""
        return self._in_flight[0] if self._in_flight else None

    def forward_left(self) -> float | None:
        done = self.model.layers_done
        if done is None or not self._in_flight:
            return None
        out = self._in_flight[0]
        if out.forward_end:  # also where nobody was left to compute for
            return 0.0
        # Until it has begun, the cell is of the step before.
        return 1.0 - float(done.array[0]) / len(self.model.layers) if out.device_start else 1.0

    def discard_in_flight(self) -> None:
        """Drop outputs and events of steps in flight (teardown, weight reload), once the device is done with them."""
        self.stream.synchronize()
        while self._in_flight:
            self._release(self._in_flight[0])
        self.preempted_idx[:] = -1

    def close(self) -> None:
        self.discard_in_flight()
        self.stream.close()
        self._mask_filling.close()

    def align_clocks(self) -> None:
        """Waits for the device."""
        self.stream.run(self.device.align_clock)
        self.stream.synchronize()

    def free_clocks(self) -> None:
        self.device.free_clock()

    def check_idle(self) -> None:
        if (self.preempted_idx >= 0).any():
            raise RuntimeError(f"stale preempted_idx: {self.preempted_idx.tolist()}")
        if not self.is_idle():
            raise RuntimeError("the device reports a running slot, the scheduler has none")

    def figures(self) -> dict[str, Any]:
        """Where it computes, and what holds a GPU's memory, in bytes."""
        device = self.device
        figures: dict[str, Any] = {
            "device": device.name,
            "dtype": device.dtype,
            "kv_cache_dtype": device.kv_cache_dtype,
            "batch_invariant": device.batch_invariant or not device.is_gpu,
        }
        if device.is_gpu:
            memory = figures["memory"] = dict(self.memory_shares)
            # On the stream, because whoever asks may be a thread that the device does not know yet.
            self.stream.run(lambda: memory.update(free_bytes=device.free_bytes()))
        return figures

    # Launching: what the device stream is given.

    def launch_forward(self, plan: StepPlan) -> None:
        out = self._free_outputs.pop()
        self._enter_matchers(plan)
        matchers = (
            {slot: self._matchers[slot] for slot in plan.sampling if slot in self._matchers} if self._matchers else {}
        )
        out.begin(plan, self.eos_token_ids, matchers)
        self.preempted_idx[plan.preempted] = plan.step
        self._in_flight.append(out)
        out.launched_at = time.perf_counter()
        self.stream.run(lambda: self._run_forward(out))

    def launch_sampling(self) -> None:
        out = self._in_flight[-1]
        out.fill_masks(self._mask_filling)
        self.stream.run(lambda: self._run_sampling(out))
        out.enqueued_at = time.perf_counter()

    def _enter_matchers(self, plan: StepPlan) -> None:
        for insert in plan.inserts:
            self._matchers.pop(insert.slot, None)
            if not insert.params.is_masked:
                continue
            if self.grammars is None:
                raise RuntimeError(
                    f"request {insert.request_id} has a grammar or a budget, and nothing here follows it"
                )
            matcher = self.grammars.matcher_of(insert.params, insert.token_ids[insert.num_prompt_tokens :])
            assert matcher is not None
            self._matchers[insert.slot] = matcher

    def _run_forward(self, out: InFlightStep) -> None:
        if self.model.layers_done is not None:
            self.model.layers_done.array[0] = 0
        out.timer.mark_start()
        try:
            out.num_samples = self._preprocess_and_execute_model(out)
        except BaseException as error:  # reported by the host when it saves the step
            out.error = error
        if self.model.layers_done is not None:
            out.forward_end = time.perf_counter()

    def _run_sampling(self, out: InFlightStep) -> None:
        out.finish_masks()
        try:
            if out.error is None:
                self._postprocess(out, out.num_samples)
        except BaseException as error:
            out.error = error
        out.record()

    # Stage 1: device stream.

    def _preprocess_and_execute_model(self, out: InFlightStep) -> int:
        """Returns how many rows sample."""
        share, plan = self.share_inputs, out.plan
        assert plan is not None
        if plan.inserts:
            state.insert_requests(share, out.insert_ints, out.insert_floats, out.insert_tokens)
        state.apply_step(share, out.scheduled.tensor, out.cleared.tensor, out.block_updates)
        if not plan.scheduled:
            return 0
        if self.graphs is not None and (graph := self.graphs.forward(plan)) is not None:
            self._hidden = graph.replay()
            return len(plan.sampling)
        self._pack_tokens()
        num_rows, num_samples = self.device.num_rows(plan.num_tokens, len(plan.sampling), self.counts)
        if num_rows:
            if plan.has_prefill:
                rows = self._rows_with_prompts(num_rows, max(plan.scheduled) + 1, max(plan.scheduled.values()))
            else:
                rows = self._batch_rows(num_rows)
            self._hidden = self.model.forward(rows, self.kv_cache)
            self.sampler.gather(self._hidden, num_samples)
        return num_samples

    def _pack_tokens(self) -> None:
        state.pack_tokens(
            self.share_inputs,
            self.ids_remove_padding,
            self.positions,
            self.batch_id_per_token,
            self.cu_seqlens_q,
            self.sample_rows,
            self.sample_slots,
            self.counts,
        )

    def _batch_rows(self, num_rows: int) -> BatchRows:
        return BatchRows(
            self.ids_remove_padding[:num_rows],
            self.positions[:num_rows],
            self.batch_id_per_token[:num_rows],
            self.share_inputs.block_tables,
        )

    def _rows_with_prompts(self, num_rows: int, num_slots: int, max_rows_per_slot: int) -> BatchRows:
        """Every block of a GPU's attention looks through the first ``num_slots`` slots for its rows: all that have any."""
        rows = self._batch_rows(num_rows)
        return rows._replace(
            block_tables=rows.block_tables[:num_slots],
            cu_seqlens_q=self.cu_seqlens_q[: num_slots + 1],
            max_rows_per_slot=max_rows_per_slot,
        )

    # Stage 2: device stream.

    def _postprocess(self, out: InFlightStep, num_samples: int) -> None:
        plan = out.plan
        assert plan is not None
        kind = SamplingGraph.for_needs(plan.needs) if self.graphs is not None and plan.scheduled else None
        # A graph may look at the masks where no request has one.
        if plan.needs.grammar or (kind is not None and kind.needs.grammar):
            out.send_masks()
        if kind is not None and self.graphs.sample(num_samples, kind):  # type: ignore[union-attr]
            return
        for wanted in plan.needs.prompt_logprobs:
            assert self._hidden is not None
            first_row = int(self.cu_seqlens_q.numpy()[wanted.slot])
            out.prompt_logprobs[wanted.slot] = self.sampler.score_prompt(self._hidden, first_row, wanted)
        self.sampler.run(num_samples, plan.needs, out.mask_tensor, out.packed)

    def _capture(self, progress: Progress | None, max_bytes: int) -> None:
        """With every slot empty, what runs before a capture computes padding rows alone and changes nothing."""
        packed, masks = self._free_outputs[0].packed, self._free_outputs[0].mask_tensor
        max_tokens = min(self.model.max_launch_bound_rows, self.ids_remove_padding.shape[0])
        decoding, prompts = decode_sizes(self.max_num_seqs), prompt_sizes(max_tokens, self.max_num_seqs)
        # Made before anything is captured.
        rows_of = {size: self._batch_rows(size) for size in decoding}
        rows_with_prompts = {size: self._rows_with_prompts(*size, max_rows_per_slot=size.tokens) for size in prompts}

        def decode(num_rows: int) -> paddle.Tensor:
            return self._forward_and_gather(rows_of[num_rows], num_rows)

        def with_prompts(size: PromptSize) -> paddle.Tensor:
            return self._forward_and_gather(rows_with_prompts[size], size.slots)

        def sample(num_samples: int, kind: SamplingGraph) -> None:
            self.sampler.run(num_samples, kind.needs, masks, packed)

        capture = GraphCapture(self.device.free_bytes, max_bytes)
        self.graphs = StepGraphs(decoding, prompts, decode, with_prompts, sample, capture, progress)

    def _forward_and_gather(self, rows: BatchRows, num_samples: int) -> paddle.Tensor:
        self._pack_tokens()
        hidden = self.model.forward(rows, self.kv_cache)
        self.sampler.gather(hidden, num_samples)
        return hidden

    # Stage 3: host.

    def save_output(self) -> StepResult:
        return self._save_output(self._in_flight[0])

    def _save_output(self, out: InFlightStep) -> StepResult:
        out.wait()
        plan = out.plan
        assert plan is not None
        packed = unpack_outputs(out.landing.array)
        preempted = set(np.flatnonzero(self.preempted_idx == plan.step).tolist())
        goes_on = (packed.num_sampled == 1) & (packed.stop_reason == StopReason.NONE)
        if packed.logprobs is not None:
            goes_on &= packed.logprobs.counts < 0
        goes_on[[*preempted, *out.prompt_logprobs]] = False
        tokens = packed.tokens.tolist()
        plain_slots, plain_tokens, others = step_rows().saved_rows(plan.request_ids, goes_on.tolist(), tokens)
        for slot, matcher in out.matchers.items():
            if goes_on[slot]:
                matcher.accept(tokens[slot])
        outputs = [
            SlotOutput(slot, plan.request_ids[slot], PREEMPTED)
            if slot in preempted
            else _slot_output(slot, plan.request_ids[slot], packed, out)
            for slot in others
        ]
        # Only now: a marker that is cleared before it was emitted leaves its request waiting for ever.
        self.preempted_idx[self.preempted_idx == plan.step] = -1
        out.saved_at = time.perf_counter()
        self._release(out)
        self.last_saved = out
        return StepResult(plan.step, plain_slots, plain_tokens, outputs)

    def _release(self, out: InFlightStep) -> None:
        self._in_flight.remove(out)
        out.release(self.poison_released)
        self._free_outputs.append(out)


def _slot_output(slot: int, request_id: str, packed: PackedStep, out: InFlightStep) -> SlotOutput:
    prompt_logprobs, matcher = out.prompt_logprobs.get(slot), out.matchers.get(slot)
    if packed.num_sampled[slot] == 0:
        return SlotOutput(slot, request_id, NO_TOKEN, prompt_logprobs=prompt_logprobs)
    token, reason = int(packed.tokens[slot]), int(packed.stop_reason[slot])
    if matcher is not None:
        matcher.accept(token)
        if reason == StopReason.EOS and matcher.has_failed:
            reason = StopReason.LENGTH  # a limit ended the answer, not its structure
    finish_reason = None
    if reason != StopReason.NONE:
        finish_reason = FINISH_LENGTH if reason == StopReason.LENGTH else FINISH_STOP
    matched = int(packed.matched_stop[slot]) if finish_reason == FINISH_STOP else None
    logprobs = None
    if packed.logprobs is not None and packed.logprobs.counts[slot] >= 0:
        count = int(packed.logprobs.counts[slot])
        ids, values = packed.logprobs.ids[slot], packed.logprobs.logprobs[slot]
        logprobs = TokenLogprobs(
            float(values[0]),
            int(packed.logprobs.ranks[slot]),
            ids[1 : count + 1].tolist(),
            values[1 : count + 1].tolist(),
        )
    return SlotOutput(
        slot,
        request_id,
        token,
        finish_reason,
        matched,
        reason == StopReason.STOP_SEQUENCE,
        logprobs,
        prompt_logprobs,
    )
