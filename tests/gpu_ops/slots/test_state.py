"""State ops against their twins on random states, and the rules of stop detection and block state by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.sampling_params import MAX_STOP_SEQ_LEN, MAX_STOP_SEQS
from gpu_ops import state as ops
from gpu_ops.slots.insert_columns import NUM_FLOATS, NUM_INTS
from gpu_ops.slots.share_inputs import ShareInputs, allocate_share_inputs
from gpu_ops.step_result import landing_size, unpack_outputs
from gpu_ops.twins import state as twins
from tests.gpu_ops.slots.random_slots import (
    assert_same_state,
    empty_state,
    on_device,
    put_request,
    random_state,
    tensor,
)
from tests.gpu_ops.slots.request_rows import columns, int_row

seeds = st.integers(0, 2**32 - 1)
many = settings(max_examples=60, deadline=None)


def random_case(seed: int):
    """A generator, a random twin state and the same state on the device."""
    rng = np.random.default_rng(seed)
    slots, max_model_len, block_size = (int(rng.integers(1, high)) for high in (7, 40, 7))
    state = random_state(rng, slots, max_model_len + 1, block_size, vocab=int(rng.integers(1, 20)))
    return rng, state, on_device(state)


def random_sampled(rng: np.random.Generator, state) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and the slots that sampled them, in slot order; the slots are padded to one a slot."""
    ready = (state.prompt_lens > 0) & (rng.random(len(state.prompt_lens)) < 0.7)
    slots = np.full(len(ready), -1, np.int32)
    chosen = np.flatnonzero(ready)
    slots[: len(chosen)] = chosen
    return rng.integers(0, 20, len(chosen)), slots


@many
@given(seeds)
def test_apply_step_equals_twin(seed):
    rng, state, device = random_case(seed)
    slots, blocks = state.block_tables.shape
    n = int(rng.integers(0, 6))
    updates = np.stack([rng.integers(0, high, n) for high in (slots, blocks, 99)], axis=1).astype(np.int32)
    scheduled = rng.integers(0, 8, slots).astype(np.int32)
    cleared = (rng.random(slots) < 0.2).astype(np.int32)
    twins.apply_step(state, scheduled, cleared, updates)
    ops.apply_step(device, tensor(scheduled, "int32"), tensor(cleared, "int32"), tensor(updates, "int32"))
    assert_same_state(device, state)


@many
@given(seeds)
def test_recover_block_equals_twin(seed):
    _, state, device = random_case(seed)
    twins.recover_block(state)
    ops.recover_block(device)
    assert_same_state(device, state)


@many
@given(seeds)
def test_pack_tokens_equals_twin(seed):
    rng, state, device = random_case(seed)
    slots = len(state.prompt_lens)
    rows = int(state.seq_lens_this_time.sum() + rng.integers(0, 4))
    out = [np.full(size, 77, dtype) for size, dtype in (
        (rows, np.int64), (rows, np.int32), (rows, np.int32), (slots + 1, np.int32), (slots, np.int32),
        (slots, np.int32), (2, np.int32),
    )]  # fmt: skip
    device_out = [tensor(array, array.dtype.name) for array in out]
    twins.pack_tokens(state, *out)
    ops.pack_tokens(device, *device_out)
    for array, written in zip(out, device_out):
        np.testing.assert_array_equal(written.numpy(), array)


@many
@given(seeds)
def test_detect_stop_equals_twin(seed):
    rng, state, device = random_case(seed)
    tokens, slots = random_sampled(rng, state)
    twins.detect_stop(state, tokens, slots)
    ops.detect_stop(device, tensor(tokens, "int64"), tensor(slots, "int32"))
    assert_same_state(device, state)


@many
@given(seeds)
def test_update_inputs_equals_twin(seed):
    rng, state, device = random_case(seed)
    tokens, slots = random_sampled(rng, state)
    twins.update_inputs(state, tokens, slots)
    ops.update_inputs(device, tensor(tokens, "int64"), tensor(slots, "int32"))
    assert_same_state(device, state)


@many
@given(seeds)
def test_insert_requests_equals_twin(seed):
    rng, state, device = random_case(seed)
    slots, max_model_len = state.token_ids_all.shape
    n = int(rng.integers(0, slots + 1))
    width = int(rng.integers(1, max_model_len + 1))
    ints = rng.integers(-1, 50, (n, NUM_INTS))
    prefill_lens = rng.integers(1, width + 1, n)
    prompt_lens = np.array([rng.integers(1, prefill + 1) for prefill in prefill_lens], int)
    for name, value in {
        "slot": rng.permutation(slots)[:n],
        "prompt_len": prompt_lens,
        "prefill_len": prefill_lens,
        "step_idx": prefill_lens - prompt_lens,
        "num_computed": [rng.integers(0, prefill) for prefill in prefill_lens],
        "top_k": rng.integers(0, 100, n),
        "stop_seq_lens": rng.integers(0, MAX_STOP_SEQ_LEN + 1, (n, MAX_STOP_SEQS)),
    }.items():
        ints[:, columns(name)] = value
    floats = rng.normal(size=(n, NUM_FLOATS)).astype(np.float32)
    tokens = rng.integers(0, 50, (n, width))
    twins.insert_requests(state, ints, floats, tokens)
    ops.insert_requests(device, tensor(ints, "int64"), tensor(floats, "float32"), tensor(tokens, "int64"))
    assert_same_state(device, state)


@many
@given(seeds)
def test_pack_outputs_equals_twin_and_unpacks(seed):
    rng, state, device = random_case(seed)
    slots = len(state.prompt_lens)
    tokens, sample_slots = random_sampled(rng, state)
    for module, where in ((twins, state), (ops, device)):
        arguments = (tokens, sample_slots)
        if module is ops:
            arguments = (tensor(tokens, "int64"), tensor(sample_slots, "int32"))
        module.detect_stop(where, *arguments)
        module.update_inputs(where, *arguments)

    columns = int(rng.integers(1, 22))
    ids = rng.integers(0, 1000, (len(tokens), columns))
    values = rng.normal(size=(len(tokens), columns)).astype(np.float32)
    ranks = rng.integers(1, 1000, len(tokens))
    with_logprobs = bool(rng.integers(0, 2))
    landing = np.zeros(landing_size(slots, 20), np.int64)
    device_landing = tensor(landing, "int64")
    if with_logprobs:
        twins.pack_outputs(state, landing, sample_slots, ids, values, ranks)
        ops.pack_outputs(
            device, device_landing, tensor(sample_slots, "int32"), tensor(ids, "int64"), tensor(values, "float32"),
            tensor(ranks, "int64"),
        )  # fmt: skip
    else:
        twins.pack_outputs(state, landing)
        ops.pack_outputs(device, device_landing)
    np.testing.assert_array_equal(device_landing.numpy(), landing)

    result = unpack_outputs(landing)
    landing[:] = 0  # the result must own its memory
    assert result.not_need_stop == bool(state.not_need_stop[0])
    np.testing.assert_array_equal(result.tokens, state.sampled_token_ids[:, 0])
    np.testing.assert_array_equal(result.num_sampled, state.num_sampled)
    np.testing.assert_array_equal(result.stop_reason, state.stop_reason)
    np.testing.assert_array_equal(result.matched_stop, state.matched_stop)
    np.testing.assert_array_equal(result.seq_lens_decoder, state.seq_lens_decoder)
    assert (result.logprobs is not None) == with_logprobs
    if not with_logprobs:
        return
    rows = {int(slot): row for row, slot in enumerate(sample_slots[: len(tokens)])}
    for slot in range(slots):
        if slot not in rows or state.num_logprobs[slot] < 0:
            assert result.logprobs.counts[slot] == -1
            continue
        row, kept = rows[slot], min(int(state.num_logprobs[slot]) + 1, columns)
        assert result.logprobs.counts[slot] == kept - 1
        assert result.logprobs.ranks[slot] == ranks[row]
        np.testing.assert_array_equal(result.logprobs.ids[slot, :kept], ids[row, :kept])
        np.testing.assert_array_equal(result.logprobs.logprobs[slot, :kept], values[row, :kept].astype(np.float64))


def test_allocated_state_is_empty_and_stopped():
    state = allocate_share_inputs(3, 33, 16)
    assert_same_state(state, empty_state(3, 33, 16))
    assert state.block_tables.shape == [3, 3]
    assert bool(state.stop_flags.all())


@pytest.mark.parametrize("name", ["max_num_seqs", "max_model_len", "block_size"])
def test_allocator_names_a_size_below_one(name):
    sizes = {"max_num_seqs": 2, "max_model_len": 8, "block_size": 4, name: 0}
    with pytest.raises(ValueError, match=name):
        allocate_share_inputs(**sizes)


def apply(device: ShareInputs, scheduled: list[int], cleared: list[int] | None = None, updates=()) -> None:
    updates = np.asarray(updates, np.int32).reshape(-1, 3)
    cleared = [0] * len(scheduled) if cleared is None else cleared
    ops.apply_step(device, tensor(scheduled, "int32"), tensor(cleared, "int32"), tensor(updates, "int32"))


def test_stopped_slot_costs_nothing_in_the_next_step():
    state = empty_state()
    put_request(state, 0, prompt=[1], eos_token_id=[9])
    put_request(state, 1, prompt=[1], eos_token_id=[9])
    device = on_device(state)
    tokens, slots = tensor([9, 8], "int64"), tensor([0, 1], "int32")
    ops.detect_stop(device, tokens, slots)
    ops.update_inputs(device, tokens, slots)
    assert device.seq_lens_this_time.tolist() == [0, 1, 0]
    apply(device, [1, 1, 1])  # the host predicts too much: it does not know yet
    assert device.seq_lens_this_time.tolist() == [0, 1, 0]


def test_slot_pauses_without_a_block_and_recovers_with_it():
    state = empty_state(block_size=4)
    put_request(state, 0, prompt=[1, 2, 3, 4])
    state.block_tables[0, 1:] = -1
    device = on_device(state)
    tokens, slots = tensor([5], "int64"), tensor([0], "int32")
    ops.update_inputs(device, tokens, slots)
    assert (device.is_block_step[0].item(), device.seq_lens_this_time[0].item()) == (True, 0)
    assert device.not_need_stop.item()
    apply(device, [1, 0, 0])
    assert (device.is_block_step[0].item(), device.seq_lens_this_time[0].item()) == (True, 0)
    apply(device, [1, 0, 0], updates=[(0, 1, 17)])
    assert (device.is_block_step[0].item(), device.seq_lens_this_time[0].item()) == (False, 1)


def test_chunk_that_its_blocks_do_not_cover_pauses_the_slot():
    state = empty_state(block_size=4)
    put_request(state, 0, prompt=list(range(10)), seq_lens_decoder=0)
    state.block_tables[0, 2:] = -1
    device = on_device(state)
    apply(device, [8, 0, 0])
    assert device.seq_lens_this_time[0].item() == 8
    apply(device, [9, 0, 0])
    assert (device.is_block_step[0].item(), device.seq_lens_this_time[0].item()) == (True, 0)


def test_preempted_slot_loses_blocks_lengths_and_its_run():
    state = empty_state()
    put_request(state, 0, prompt=[1, 2], is_block_step=True)
    put_request(state, 1, prompt=[1, 2])
    device = on_device(state)
    apply(device, [1, 1, 0], cleared=[1, 0, 0])
    assert device.stop_flags.tolist() == [True, False, True]
    assert device.is_block_step.tolist() == [False, False, False]
    assert device.block_tables[0].tolist() == [-1] * 8
    assert device.seq_lens_decoder.tolist() == [0, 1, 0]
    assert device.seq_lens_this_time.tolist() == [0, 1, 0]


def test_prediction_that_is_too_high_is_cut_to_what_the_slot_has_left():
    state = empty_state()
    put_request(state, 0, prompt=[1, 2, 3, 4, 5], seq_lens_decoder=2)
    device = on_device(state)
    apply(device, [100, 100, 0])
    assert device.seq_lens_this_time.tolist() == [3, 0, 0]
    assert device.seq_lens_encoder.tolist() == [3, 0, 0]


def test_non_contiguous_tensors_are_refused():
    state = allocate_share_inputs(2, 8, 4)
    strided = tensor(np.zeros((8, 2)), "int64").t()
    assert not strided.is_contiguous()
    fields = {name: getattr(state, name) for name in ShareInputs.__dataclass_fields__}
    with pytest.raises(ValueError, match="token_ids_all must be contiguous"):
        ShareInputs(**{**fields, "token_ids_all": strided})
    wide = tensor(np.zeros((landing_size(2, None), 2)), "int64")[:, 0]
    with pytest.raises(ValueError, match="landing must be contiguous"):
        ops.pack_outputs(state, wide)


def test_wrong_shapes_and_types_are_named():
    state = allocate_share_inputs(2, 8, 4)
    with pytest.raises(Exception, match=r"scheduled: has shape \[3\], needs \[2\]"):
        apply(state, [0, 0, 0], cleared=[0, 0])
    with pytest.raises(Exception, match="cleared: has dtype int64, needs int32"):
        ops.apply_step(state, tensor([0, 0], "int32"), tensor([0, 0], "int64"), tensor(np.zeros((0, 3)), "int32"))
    with pytest.raises(Exception, match="sample_slots: has 1 rows, needs 2"):
        ops.detect_stop(state, tensor([1, 2], "int64"), tensor([0], "int32"))
    with pytest.raises(Exception, match="sample_slots: row 0 names slot 2"):
        ops.update_inputs(state, tensor([1], "int64"), tensor([2], "int32"))
    with pytest.raises(Exception, match="landing"):
        ops.pack_outputs(state, tensor(np.zeros(10), "int64"))


def test_block_updates_out_of_range_are_refused():
    state = allocate_share_inputs(2, 8, 4)
    for update in ((2, 0, 1), (-1, 0, 1), (0, 2, 1)):
        with pytest.raises(Exception, match="block_updates: row 0 names"):
            apply(state, [0, 0], updates=[update])


def test_a_step_with_more_tokens_than_rows_is_refused():
    state = empty_state()
    put_request(state, 0, prompt=[1, 2, 3], seq_lens_decoder=0, seq_lens_this_time=3)
    out = [tensor(np.zeros(size), dtype) for size, dtype in (
        (2, "int64"), (2, "int32"), (2, "int32"), (4, "int32"), (3, "int32"), (3, "int32"), (2, "int32"),
    )]  # fmt: skip
    with pytest.raises(Exception, match="has 2 rows, but the step has 3 tokens"):
        ops.pack_tokens(on_device(state), *out)


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [("slot", 3, "slot"), ("prompt_len", 0, "prompt_len"), ("prefill_len", 99, "prefill_len"), ("step_idx", 5, "step_idx"),
     ("num_computed", 4, "num_computed"), ("top_k", -1, "top_k"), ("logprobs", -2, "num_logprobs"),
     ("stop_seq_lens", 17, "stop_seqs_len")],
)  # fmt: skip
def test_impossible_requests_are_refused_by_name_and_write_nothing(column, value, name):
    state = empty_state()
    device = on_device(state)
    ints = np.stack([int_row(slot=slot, prompt_len=3, prefill_len=4, step_idx=1, max_tokens=10) for slot in (0, 1)])
    ints[1, columns(column)] = value
    floats, tokens = np.zeros((2, NUM_FLOATS)), np.zeros((2, 4))
    with pytest.raises(Exception, match=f"ints: row 1 has an impossible {name}"):
        ops.insert_requests(device, tensor(ints, "int64"), tensor(floats, "float32"), tensor(tokens, "int64"))
    assert_same_state(device, state)
