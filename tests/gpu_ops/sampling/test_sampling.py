"""Sampling ops against their twins on random rows, the distribution they draw from, and rows without one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_ops import sampling as ops
from gpu_ops.forward import get_num_threads, set_num_threads
from gpu_ops.twins import sampling as twins
from gpu_ops.twins.philox import philox4x32_10, uniform
from tests.gpu_ops.sampling.sample_one import sample_one
from tests.gpu_ops.slots.random_slots import empty_state, on_device, put_request, random_state, tensor

seeds = st.integers(0, 2**32 - 1)
many = settings(max_examples=60, deadline=None)
# How far a float32 result may lie from the float64 twin's: tokens within it of a boundary may differ.
ROUNDING = 1e-5


def random_rows(seed: int, max_vocab: int = 200):
    """A generator, a random state and logits for some of its slots, -1 among them."""
    rng = np.random.default_rng(seed)
    vocab = int(rng.integers(1, max_vocab))
    state = random_state(rng, int(rng.integers(1, 7)), 30, 4, vocab)
    slots = np.flatnonzero(state.prompt_lens > 0).astype(np.int32)
    if rng.random() < 0.3:
        slots = np.append(slots, np.int32(-1))
    logits = (rng.normal(size=(len(slots), vocab)) * rng.choice([0.5, 3, 10])).astype(np.float32)
    if rng.random() < 0.3:
        logits = np.round(logits)  # ties
    if rng.random() < 0.3:
        logits[rng.random(logits.shape) < 0.5] = -np.inf
    return rng, state, slots, logits


def random_masks(rng: np.random.Generator, num_slots: int, vocab: int) -> np.ndarray:
    """Masks of slots: none, of most tokens, of few, of one, of all, of nothing."""
    masks = np.zeros((num_slots, ops.mask_words(vocab)), np.int32)
    for mask in masks:
        mask[0] = rng.random() < 0.8
        share = rng.choice([0.0, 0.03, 0.5, 0.97, 1.0])
        allowed = rng.random(32 * (len(mask) - 1)) < share
        if rng.random() < 0.2:
            allowed[int(rng.integers(vocab))] = True
        mask[1:] = np.packbits(allowed, bitorder="little").view(np.int32)
    return masks


def possible_tokens(row, state, slot: int) -> set[int]:
    """What the twin samples with every parameter moved by a rounding error."""
    temperature, u = (
        state.temperature[slot],
        uniform(int(state.seeds[slot]), int(state.prompt_lens[slot] + state.step_idx[slot])),
    )
    tokens = set()
    for shift in (-ROUNDING, 0.0, ROUNDING):
        for moved in (-ROUNDING, 0.0, ROUNDING):
            top_p = state.top_p[slot] + shift if state.top_p[slot] < 1 else 1.0
            min_p = state.min_p[slot] * (1 + shift)
            kept = twins.kept_probabilities(row, temperature, min_p, state.top_k[slot], top_p)
            tokens.add(twins.draw(kept, min(max(u + moved, 0.0), 1 - 2**-24)))
    return tokens


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_twin_gives_the_published_words(counter, key, words):
    assert philox4x32_10(counter, key) == words


@many
@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 60))
def test_sample_draws_the_twins_random_number(seed, position):
    """Among 4096 equally likely tokens the sampled one spells the first 12 bits of the random number."""
    assert sample_one(np.zeros(4096), seed, position) == int(uniform(seed, position) * 4096)


@many
@given(seeds)
def test_gather_last_tokens_equals_twin(seed):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=rng.integers(1, 40, 2)).astype(np.float32)
    rows = rng.integers(-1, len(hidden) + 2, int(rng.integers(0, 9))).astype(np.int32)
    kept = rng.normal(size=(len(rows) + 2, hidden.shape[1])).astype(np.float32)
    gathered = tensor(kept, "float32")
    ops.gather_last_tokens(tensor(hidden, "float32"), tensor(rows, "int32"), gathered)
    np.testing.assert_array_equal(gathered.numpy()[: len(rows)], twins.gather_last_tokens(hidden, rows))
    np.testing.assert_array_equal(gathered.numpy()[len(rows) :], kept[len(rows) :])


@many
@given(seeds)
def test_apply_penalties_equals_twin(seed):
    _, state, slots, logits = random_rows(seed)
    device_logits = tensor(logits, "float32")
    ops.apply_penalties(device_logits, on_device(state), tensor(slots, "int32"))
    twins.apply_penalties(logits, state, slots)
    np.testing.assert_array_equal(device_logits.numpy(), logits)


@many
@given(seeds)
def test_apply_token_masks_equals_twin(seed):
    rng, state, slots, logits = random_rows(seed)
    if rng.random() < 0.3:
        logits[rng.random(logits.shape) < 0.5] = np.nan
    masks = random_masks(rng, len(state.prompt_lens), logits.shape[1])
    before, device_logits = logits.copy(), tensor(logits, "float32")
    ops.apply_token_masks(device_logits, tensor(masks, "int32"), tensor(slots, "int32"))
    twins.apply_token_masks(logits, masks, slots)
    np.testing.assert_array_equal(device_logits.numpy(), logits)
    plain = [row for row, slot in enumerate(slots) if slot < 0 or not masks[slot, 0]]
    assert device_logits.numpy()[plain].tobytes() == before[plain].tobytes()


@many
@given(seeds)
def test_apply_temperature_equals_twin(seed):
    _, state, slots, logits = random_rows(seed)
    device_logits = tensor(logits, "float32")
    ops.apply_temperature(device_logits, on_device(state), tensor(slots, "int32"))
    twins.apply_temperature(logits, state, slots)
    np.testing.assert_array_equal(device_logits.numpy(), logits)


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_sample_equals_twin(seed):
    _, state, slots, logits = random_rows(seed)
    sampled = ops.sample(tensor(logits, "float32"), on_device(state), tensor(slots, "int32")).numpy()
    expected = twins.sample(logits, state, slots)
    for r in np.flatnonzero(sampled != expected):
        assert sampled[r] in possible_tokens(logits[r], state, slots[r]), (sampled[r], expected[r])


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_masks_given_to_sample_do_what_masks_applied_before_it_do(seed):
    rng, state, slots, logits = random_rows(seed)
    if rng.random() < 0.3:
        logits[rng.random(logits.shape) < 0.5] = np.nan
    if rng.random() < 0.3:
        logits[rng.random(logits.shape) < 0.9] = -np.inf
    masks, device = random_masks(rng, len(state.prompt_lens), logits.shape[1]), on_device(state)
    device_masks, device_slots = tensor(masks, "int32"), tensor(slots, "int32")
    applied = tensor(logits, "float32")
    ops.apply_token_masks(applied, device_masks, device_slots)
    before = ops.sample(applied, device, device_slots).numpy()
    sampled = ops.sample(tensor(logits, "float32"), device, device_slots, device_masks).numpy()
    np.testing.assert_array_equal(sampled, before)
    greedy = [r for r, slot in enumerate(slots) if slot < 0 or state.temperature[slot] <= twins.GREEDY_TEMPERATURE]
    np.testing.assert_array_equal(sampled[greedy], twins.sample(logits, state, slots, masks)[greedy])


@many
@given(seeds)
def test_token_logprobs_equals_twin(seed):
    rng, _, _, logits = random_rows(seed)
    tokens = rng.integers(-1, logits.shape[1] + 1, len(logits))
    num = int(rng.integers(0, 21))
    ids, logprobs, ranks = ops.token_logprobs(tensor(logits, "float32"), tensor(tokens, "int64"), num)
    expected_ids, expected_logprobs, expected_ranks = twins.token_logprobs(logits, tokens, num)
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(ranks.numpy(), expected_ranks)
    np.testing.assert_allclose(logprobs.numpy(), expected_logprobs, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("vocab", [49152, 151_936])
def test_large_vocabularies_equal_twin(vocab):
    rng = np.random.default_rng(vocab)
    cases = [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 30_000, "top_p": 0.7},
             {"top_k": 50, "top_p": 0.95, "min_p": 0.01}]  # fmt: skip
    state = empty_state(slots=len(cases))
    for slot, params in enumerate(cases):
        put_request(state, slot, prompt=[1, 2], seeds=rng.integers(0, 2**60), temperature=0.9, **params)
    slots = np.arange(len(cases), dtype=np.int32)
    for logits in (rng.normal(size=(len(cases), vocab)), rng.normal(size=(len(cases), vocab)) * 4):
        logits = logits.astype(np.float32)
        sampled = ops.sample(tensor(logits, "float32"), on_device(state), tensor(slots, "int32")).numpy()
        for slot in range(len(cases)):
            assert sampled[slot] in possible_tokens(logits[slot], state, slot), cases[slot]
        ids, logprobs, ranks = ops.token_logprobs(tensor(logits, "float32"), tensor(sampled, "int64"), 20)
        expected = twins.token_logprobs(logits, sampled, 20)
        np.testing.assert_array_equal(ids.numpy(), expected[0])
        np.testing.assert_allclose(logprobs.numpy(), expected[1], atol=1e-5)
        np.testing.assert_array_equal(ranks.numpy(), expected[2])


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.8, "min_p": 0.02}],
)
def test_sampled_frequencies_follow_the_distribution(params):
    """Chi-square over 16,000 draws: seeds and positions both make independent numbers."""
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=24) * 1.5).astype(np.float32)
    draws, slots = 16_000, 50
    params = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **params}
    state = empty_state(slots=slots, max_model_len=draws)
    for slot in range(slots):
        put_request(state, slot, prompt=[1], seeds=slot % 10, **params)
        state.prompt_lens[slot] = 1 + slot // 10 * 1000
    device, row = on_device(state), tensor(np.tile(logits, (slots, 1)), "float32")
    counts = np.zeros(24)
    for step in range(draws // slots):
        device.step_idx.set_value(np.full(slots, step, np.int64))
        np.add.at(counts, ops.sample(row, device, tensor(np.arange(slots), "int32")).numpy(), 1)

    expected = draws * twins.kept_probabilities(
        logits, np.float32(params["temperature"]), params["min_p"], params["top_k"], params["top_p"]
    )
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    statistic = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = kept.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom) + 4


def test_sample_depends_on_nothing_but_its_row():
    """The same row alone, and among any neighbours at any place, gives the same token."""
    rng = np.random.default_rng(11)
    logits = (rng.normal(size=(12, 997)) * 2).astype(np.float32)
    state = empty_state(slots=12)
    for slot in range(12):
        put_request(state, slot, prompt=[1] * (slot + 1), seeds=slot, temperature=1.2, top_p=0.95, top_k=300)
    device = on_device(state)
    together = ops.sample(tensor(logits, "float32"), device, tensor(np.arange(12), "int32")).tolist()
    for order in (np.arange(12)[::-1], rng.permutation(12)[:5]):
        rows = ops.sample(tensor(logits[order], "float32"), device, tensor(order, "int32")).tolist()
        assert rows == [together[slot] for slot in order]
    alone = [
        ops.sample(tensor(logits[slot : slot + 1], "float32"), device, tensor([slot], "int32")).item()
        for slot in range(12)
    ]
    assert alone == together


def test_sampling_does_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(5)
    logits = tensor(rng.normal(size=(16, 5000)) * 2, "float32")
    state = empty_state(slots=16)
    for slot in range(16):
        put_request(state, slot, prompt=[1], seeds=slot, temperature=slot / 8, top_p=0.9, top_k=1000)
    device, slots = on_device(state), tensor(np.arange(16), "int32")
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            set_num_threads(threads)
            tokens = ops.sample(logits, device, slots)
            results.append([tokens.tolist(), *(x.tolist() for x in ops.token_logprobs(logits, tokens, 5))])
    finally:
        set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_non_contiguous_logits_are_refused():
    state = on_device(empty_state())
    logits = tensor(np.zeros((50, 2)), "float32").t()
    assert not logits.is_contiguous()
    with pytest.raises(ValueError, match="logits must be contiguous"):
        ops.apply_penalties(logits, state, tensor([0, 1], "int32"))


def test_wrong_shapes_and_types_are_named():
    state = on_device(empty_state())
    logits = tensor(np.zeros((2, 8)), "float32")
    with pytest.raises(Exception, match="logits: has dtype float64, needs float32"):
        ops.sample(tensor(np.zeros((2, 8)), "float64"), state, tensor([0, 1], "int32"))
    with pytest.raises(Exception, match="sample_slots: has 1 rows, needs 2"):
        ops.sample(logits, state, tensor([0], "int32"))
    with pytest.raises(Exception, match="sample_slots: row 1 names slot 3, needs -1 to 2"):
        ops.apply_penalties(logits, state, tensor([0, 3], "int32"))
    with pytest.raises(Exception, match=r"tokens: has shape \[3\], needs \[2\]"):
        ops.token_logprobs(logits, tensor([0, 1, 2], "int64"), 2)
    with pytest.raises(Exception, match="num: is -1"):
        ops.token_logprobs(logits, tensor([0, 1], "int64"), -1)
