"""Sampling ops on the GPU against their twins: small random rows, whole vocabularies, and rows without a distribution."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_ops import sampling as ops
from gpu_ops.twins import sampling as twins
from gpu_ops.twins.philox import uniform
from tests.gpu.parts.tensors import gpu, host, poison, state_on_gpu
from tests.gpu_ops.sampling.test_sampling import possible_tokens, random_masks, random_rows
from tests.gpu_ops.slots.random_slots import empty_state, put_request

SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_apply_penalties_equals_twin(seed):
    _, state, slots, logits = random_rows(
        int(np.random.default_rng().integers(2**31)), max_vocab=20_000 if seed % 2 else 60
    )
    logits_gpu = gpu(logits)
    ops.apply_penalties(logits_gpu, state_on_gpu(state), gpu(slots))
    twins.apply_penalties(logits, state, slots)
    np.testing.assert_allclose(logits_gpu.numpy(), logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_apply_token_masks_equals_twin(seed):
    rng, state, slots, logits = random_rows(
        int(np.random.default_rng().integers(2**31)), max_vocab=20_000 if seed % 2 else 60
    )
    masks = random_masks(rng, len(state.prompt_lens), logits.shape[1])
    logits_gpu = gpu(logits)
    ops.apply_token_masks(logits_gpu, gpu(masks), gpu(slots))
    twins.apply_token_masks(logits, masks, slots)
    np.testing.assert_array_equal(logits_gpu.numpy(), logits)


@pytest.mark.parametrize("seed", SEEDS)
def test_apply_temperature_equals_twin(seed):
    _, state, slots, logits = random_rows(
        int(np.random.default_rng().integers(2**31)), max_vocab=20_000 if seed % 2 else 60
    )
    logits_gpu = gpu(logits)
    ops.apply_temperature(logits_gpu, state_on_gpu(state), gpu(slots))
    twins.apply_temperature(logits, state, slots)
    np.testing.assert_array_equal(logits_gpu.numpy(), logits)


@pytest.mark.parametrize("seed", SEEDS)
def test_sample_equals_twin(seed):
    _, state, slots, logits = random_rows(int(np.random.default_rng().integers(2**31)))
    device_state, logits_gpu, slots_gpu = state_on_gpu(state), gpu(logits), gpu(slots)
    poison()
    tokens = ops.sample(logits_gpu, device_state, slots_gpu).numpy()
    expected = twins.sample(logits, state, slots)
    for row, slot in enumerate(slots):
        if tokens[row] != expected[row]:
            assert state.temperature[slot] > 0
            assert tokens[row] in possible_tokens(logits[row], state, slot)


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_given_to_sample_do_what_masks_applied_before_it_do(seed):
    rng, state, slots, logits = random_rows(int(np.random.default_rng().integers(2**31)))
    masks, device_state, slots_gpu = (
        gpu(random_masks(rng, len(state.prompt_lens), logits.shape[1])),
        state_on_gpu(state),
        gpu(slots),
    )
    applied = gpu(logits)
    ops.apply_token_masks(applied, masks, slots_gpu)
    before = ops.sample(applied, device_state, slots_gpu).numpy()
    np.testing.assert_array_equal(ops.sample(gpu(logits), device_state, slots_gpu, masks).numpy(), before)


@pytest.mark.parametrize("vocab", [49152, 50257, 128256, 151_936])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(0, 1.0, 0), (50, 1.0, 0), (0, 0.9, 0), (0, 1.0, 0.05), (20, 0.8, 0.01)]
)
def test_sample_of_a_whole_vocabulary(vocab, top_k, top_p, min_p):
    rng = np.random.default_rng()
    state = empty_state(8, 32)
    for slot in range(8):
        put_request(
            state, slot, [1, 2, 3], temperature=rng.choice([0.5, 1.0]), top_k=top_k, top_p=top_p, min_p=min_p,
            seeds=rng.integers(-(2**62), 2**62),
        )  # fmt: skip
    logits = (rng.normal(size=(8, vocab)) * 3).astype(np.float32)
    logits[1] = np.round(logits[1])  # thousands of equal values
    slots = np.arange(8, dtype=np.int32)
    tokens = ops.sample(gpu(logits), state_on_gpu(state), gpu(slots)).numpy()
    for row in range(8):
        if top_k == 0 and top_p == 1.0:
            # Many tokens: compare through the cumulative distribution, where a rounding error moves the index a little.
            kept = twins.kept_probabilities(logits[row], state.temperature[row], min_p, 0, 1.0)
            ends = np.cumsum(kept)
            u = uniform(int(state.seeds[row]), 3)
            assert kept[tokens[row]] > 0
            assert ends[tokens[row]] - kept[tokens[row]] - 1e-5 <= u <= ends[tokens[row]] + 1e-5
        else:
            assert tokens[row] in possible_tokens(logits[row], state, row)


def test_equal_logits_draw_the_twins_random_number():
    state = empty_state(16, 8)
    for slot in range(16):
        put_request(state, slot, [1], seeds=slot * 7919 - 50)
    slots = np.arange(16, dtype=np.int32)
    tokens = ops.sample(gpu(np.zeros((16, 4096), np.float32)), state_on_gpu(state), gpu(slots)).numpy()
    assert tokens.tolist() == [int(uniform(slot * 7919 - 50, 1) * 4096) for slot in range(16)]


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_rows_without_a_distribution_take_the_largest_value(top_p):
    inf, nan = np.inf, np.nan
    rows = np.array(
        [
            [nan] * 5,
            [-inf] * 5,
            [1, nan, 3, 3, 0],
            [inf, 1, inf, 0, 0],
            [nan, nan, -inf, -inf, nan],
            [-inf, 2, 2, 1, 0],
        ],
        np.float32,
    )
    state = empty_state(6, 8)
    for slot in range(6):
        put_request(state, slot, [1], top_p=top_p)
    slots = np.arange(6, dtype=np.int32)
    assert ops.sample(gpu(rows), state_on_gpu(state), gpu(slots)).numpy()[:5].tolist() == [0, 0, 2, 0, 2]
    state.temperature[:] = 0
    assert ops.sample(gpu(rows), state_on_gpu(state), gpu(slots)).numpy().tolist() == [0, 0, 2, 0, 2, 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_token_logprobs_equal_twin(seed):
    rng = np.random.default_rng()
    rows, vocab = int(rng.integers(1, 6)), int(rng.choice([1, 3, 200, 49152]))
    logits = (rng.normal(size=(rows, vocab)) * 4).astype(np.float32)
    if seed % 3 == 0:
        logits = np.round(logits)
    if seed % 4 == 0:
        logits[rng.random(logits.shape) < 0.4] = -np.inf
        logits[rng.random(logits.shape) < 0.1] = np.nan
    tokens, num = rng.integers(-1, vocab + 1, rows), int(rng.integers(0, 21))
    logits_gpu, tokens_gpu = gpu(logits), gpu(tokens)
    poison()
    ids, logprobs, ranks = (host(tensor) for tensor in ops.token_logprobs(logits_gpu, tokens_gpu, num))
    expected_ids, expected_logprobs, expected_ranks = twins.token_logprobs(logits, tokens, num)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ranks, expected_ranks)
