"""State ops on the GPU against their twins, staged from the GPU and from pinned memory, and a step end in a CUDA graph."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.device.cuda.graphs import CUDAGraph

from gpu_ops import host_flag, sampling
from gpu_ops import state as ops
from gpu_ops.slots.insert_columns import NUM_FLOATS, NUM_INTS
from gpu_ops.step_result import landing_size, unpack_outputs
from gpu_ops.twins import sampling as sampling_twins
from gpu_ops.twins import state as twins
from tests.gpu.parts.tensors import gpu, host, pinned, state_on_gpu
from tests.gpu_ops.slots.random_slots import assert_same_state, random_state
from tests.gpu_ops.slots.request_rows import columns

SEEDS = range(12)


def random_case(seed: int):
    """A generator, a random twin state and the same state on the GPU."""
    rng = np.random.default_rng([seed, *np.random.default_rng().integers(0, 2**31, 1)])
    slots, max_model_len, block_size = int(rng.integers(1, 70)), int(rng.integers(2, 60)), int(rng.integers(1, 7))
    state = random_state(rng, slots, max_model_len, block_size, vocab=int(rng.integers(1, 20)))
    return rng, state, state_on_gpu(state)


def random_sampled(rng, state):
    """Tokens of some slots, in slot order, with padding rows whose slot is -1."""
    ready = (state.prompt_lens > 0) & (rng.random(len(state.prompt_lens)) < 0.7)
    slots = np.full(len(ready) + 2, -1, np.int32)
    chosen = np.flatnonzero(ready)
    slots[: len(chosen)] = chosen
    return rng.integers(0, 20, len(slots)), slots


@pytest.mark.parametrize("stage", [gpu, pinned])
@pytest.mark.parametrize("seed", SEEDS)
def test_apply_step_equals_twin(seed, stage):
    rng, state, device = random_case(seed)
    slots, blocks = state.block_tables.shape
    n = int(rng.integers(1, 2000 if seed == 0 else 6))
    updates = np.stack([rng.integers(0, high, n) for high in (slots, blocks, 99)], axis=1).astype(np.int32)
    scheduled = rng.integers(0, 8, slots).astype(np.int32)
    cleared = (rng.random(slots) < 0.2).astype(np.int32)
    twins.apply_step(state, scheduled, cleared, updates)
    ops.apply_step(device, stage(scheduled), stage(cleared), stage(updates))
    assert_same_state(device, state)
    twins.recover_block(state)
    ops.recover_block(device)
    assert_same_state(device, state)


@pytest.mark.parametrize("stage", [gpu, pinned])
@pytest.mark.parametrize("seed", SEEDS)
def test_insert_requests_equals_twin(seed, stage):
    rng, state, device = random_case(seed)
    slots, max_model_len = state.token_ids_all.shape
    chosen = rng.permutation(slots)[: int(rng.integers(1, slots + 1))]
    ints = rng.integers(0, 9, (len(chosen), NUM_INTS))
    prompt_lens = rng.integers(1, max_model_len + 1, len(chosen))
    step_idx = np.array([rng.integers(0, max_model_len - prompt + 1) for prompt in prompt_lens])
    ints[:, columns("slot")] = chosen
    ints[:, columns("prompt_len")] = prompt_lens
    ints[:, columns("step_idx")] = step_idx
    ints[:, columns("prefill_len")] = prompt_lens + step_idx
    ints[:, columns("num_computed")] = [rng.integers(0, prefill) for prefill in prompt_lens + step_idx]
    floats = rng.normal(size=(len(chosen), NUM_FLOATS)).astype(np.float32)
    tokens = rng.integers(0, 50, (len(chosen), max_model_len))
    twins.insert_requests(state, ints, floats, tokens)
    ops.insert_requests(device, stage(ints), stage(floats), stage(tokens))
    assert_same_state(device, state)


@pytest.mark.parametrize("seed", SEEDS)
def test_pack_tokens_equals_twin(seed):
    rng, state, device = random_case(seed)
    slots, rows = len(state.prompt_lens), int(state.seq_lens_this_time.sum()) + int(rng.integers(1, 9))
    shapes = [(rows, np.int64), (rows, np.int32), (rows, np.int32), (slots + 1, np.int32)]
    outputs = [
        np.full(size, 77, dtype) for size, dtype in [*shapes, (slots, np.int32), (slots, np.int32), (2, np.int32)]
    ]
    tensors = [gpu(output) for output in outputs]
    twins.pack_tokens(state, *outputs)
    ops.pack_tokens(device, *tensors)
    for tensor, output in zip(tensors, outputs):
        np.testing.assert_array_equal(tensor.numpy(), output)
    assert_same_state(device, state)


@pytest.mark.parametrize("seed", SEEDS)
def test_step_end_equals_twins(seed):
    rng, state, device = random_case(seed)
    tokens, slots = random_sampled(rng, state)
    twins.detect_stop(state, tokens, slots)
    ops.detect_stop(device, gpu(tokens), gpu(slots))
    assert_same_state(device, state)
    twins.update_inputs(state, tokens, slots)
    ops.update_inputs(device, gpu(tokens), gpu(slots))
    paddle.device.cuda.synchronize()
    assert_same_state(device, state)
    assert host_flag.get_stop(device.not_need_stop) == bool(state.not_need_stop[0])

    columns = int(rng.integers(1, 22))
    ids, ranks = rng.integers(0, 99, (len(slots), columns)), rng.integers(1, 9, len(slots))
    logprobs = rng.normal(size=(len(slots), columns)).astype(np.float32)
    landing = np.full(landing_size(len(state.prompt_lens), 20), 55)
    landing_gpu = gpu(landing)
    twins.pack_outputs(state, landing, slots, ids, logprobs, ranks)
    ops.pack_outputs(device, landing_gpu, gpu(slots), gpu(ids), gpu(logprobs), gpu(ranks))
    np.testing.assert_array_equal(landing_gpu.numpy(), landing)


def test_pinned_staging_is_validated():
    _, state, device = random_case(0)
    updates = np.array([[0, state.block_tables.shape[1], 1]], np.int32)
    zeros = np.zeros(len(state.prompt_lens), np.int32)
    with pytest.raises((RuntimeError, ValueError, OSError), match="block_updates: row 0 names index"):
        ops.apply_step(device, gpu(zeros), gpu(zeros), pinned(updates))


def test_step_end_in_a_graph_replays_like_the_twins():
    rng = np.random.default_rng()
    state = random_state(rng, 6, 200, 4, vocab=50)
    state.temperature[:] = 0
    state.stop_flags[:] = False
    chosen = np.flatnonzero(state.prompt_lens > 0).astype(np.int32)
    device = state_on_gpu(state)
    logits = rng.normal(size=(len(chosen), 50)).astype(np.float32)
    logits_gpu, slots_gpu = gpu(logits), gpu(chosen)
    landing = np.zeros(landing_size(6, None), np.int64)
    landing_gpu, landing_pinned = gpu(landing), pinned(landing)

    def step():
        tokens = sampling.sample(logits_gpu, device, slots_gpu)
        ops.detect_stop(device, tokens, slots_gpu)
        ops.update_inputs(device, tokens, slots_gpu)
        ops.pack_outputs(device, landing_gpu)

    def twin_step():
        tokens = sampling_twins.sample(logits, state, chosen)
        twins.detect_stop(state, tokens, chosen)
        twins.update_inputs(state, tokens, chosen)
        twins.pack_outputs(state, landing)

    step()
    twin_step()
    graph = CUDAGraph()
    graph.capture_begin()
    step()
    graph.capture_end()
    for _ in range(5):
        graph.replay()
        twin_step()
    host_flag.copy_async(landing_pinned, landing_gpu)
    cell = pinned(np.zeros(1, np.int64))
    host_flag.event_record(cell, 1)
    host_flag.event_wait(cell, 1)
    np.testing.assert_array_equal(landing_pinned.numpy(), landing)
    assert_same_state(device, state)
    assert (
        unpack_outputs(landing_pinned.numpy()).tokens.tolist()
        == np.where(np.isin(np.arange(6), chosen), host(device.sampled_token_ids)[:, 0], -1).tolist()
    )


def test_wait_returns_when_the_work_before_the_record_is_done():
    source = np.random.default_rng().integers(0, 2**60, 1 << 22)
    device, landing = gpu(source), pinned(np.zeros_like(source))
    other = pinned(np.zeros_like(source))
    cell = pinned(np.zeros(1, np.int64))
    for ticket in range(1, 4):
        host_flag.copy_async(other, device)
        host_flag.copy_async(landing, device)
        host_flag.event_record(cell, ticket)
        host_flag.event_wait(cell, ticket)
        np.testing.assert_array_equal(landing.numpy(), source)
        host_flag.event_wait(cell, ticket)


def test_host_cells_on_the_gpu_are_refused():
    flag = gpu(np.zeros(1, np.bool_))
    with pytest.raises((RuntimeError, ValueError, OSError), match="flag: lies on the GPU"):
        host_flag.get_stop(flag)
    host_cell = pinned(np.zeros(1, np.bool_))
    host_flag.set_stop(host_cell, True)
    assert host_flag.get_stop(host_cell)
