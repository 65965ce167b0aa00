"""Sampling at the edges: rows without a distribution, ties, extreme parameters, penalties, log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_ops import sampling as ops
from tests.gpu_ops.sampling.sample_one import sample_one
from tests.gpu_ops.slots.random_slots import empty_state, on_device, put_bad_seq, put_request, tensor
from tests.gpu_ops.tensors import REFUSED

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("row", "token"),
    [
        ([NAN, 1, 3, NAN, 3], 2),
        ([NAN] * 20, 0),
        ([-INF] * 20, 0),
        ([NAN, -INF, -INF], 1),
        ([0, INF, 1, INF], 1),
        ([-INF] * 18 + [-5.0], 18),
        ([7.0], 0),
    ],
)
def test_rows_without_a_distribution_take_the_largest_value(row, token, temperature):
    for params in ({}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}):
        assert sample_one(row, temperature=temperature, **params) == token


@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 31, 33, 255, 257, 1000])
def test_greedy_takes_the_lowest_index_of_the_largest_value(vocab):
    rng = np.random.default_rng(vocab)
    for _ in range(20):
        logits = rng.integers(-3, 4, vocab).astype(np.float32)
        assert sample_one(logits, temperature=0.0) == int(logits.argmax())
        assert sample_one(logits, temperature=1e-5) == int(logits.argmax())


def test_tokens_at_minus_infinity_are_never_sampled():
    row = np.zeros(50)
    row[::2] = -INF
    assert all(sample_one(row, seed) % 2 == 1 for seed in range(200))


def test_top_k_of_the_vocabulary_or_more_keeps_everything():
    row = np.random.default_rng(1).normal(size=37)
    for seed in range(50):
        assert sample_one(row, seed, top_k=37) == sample_one(row, seed, top_k=10**6) == sample_one(row, seed)


def test_top_k_keeps_every_token_tied_with_the_k_th():
    assert {sample_one([5, 1, 5, 5, 0], seed, top_k=2) for seed in range(100)} == {0, 2, 3}


def test_tiny_top_p_keeps_the_best_token_alone():
    row = np.random.default_rng(2).normal(size=100)
    for top_p in (0.0, 1e-30, 1e-6):
        assert {sample_one(row, seed, top_p=top_p) for seed in range(30)} == {int(row.argmax())}


def test_top_p_takes_the_lower_index_first_among_equals():
    assert {sample_one(np.zeros(8), seed, top_p=0.25) for seed in range(200)} == {0, 1}


def test_min_p_of_one_keeps_the_best_tokens():
    assert {sample_one([1, 4, 4, 0], seed, min_p=1.0) for seed in range(60)} == {1, 2}


def test_extreme_logits_and_temperatures_stay_within_the_row():
    for row in ([3e38, -3e38, 1.0], [-3e38] * 5, [1e-40] * 5):
        for temperature in (2e-5, 1.0, 1e30):
            for params in ({}, {"top_p": 0.5}, {"top_k": 2}):
                assert 0 <= sample_one(row, temperature=temperature, **params) < len(row)
    assert sample_one([3e38, -3e38, 1.0], temperature=2e-5) == 0


def test_no_rows_give_no_tokens():
    state = on_device(empty_state())
    logits, slots = tensor(np.zeros((0, 50)), "float32"), tensor([], "int32")
    ops.apply_penalties(logits, state, slots)
    ops.apply_token_masks(logits, tensor(np.zeros((1, 3)), "int32"), slots)
    assert ops.sample(logits, state, slots).shape == [0]
    assert [result.shape for result in ops.token_logprobs(logits, tensor([], "int64"), 3)] == [[0, 4], [0, 4], [0]]
    kept = tensor(np.ones((2, 8)), "float32")
    ops.gather_last_tokens(tensor(np.zeros((4, 8)), "float32"), slots, kept)
    assert (kept.numpy() == 1).all()


def penalised(row, prompt, generated, **params) -> np.ndarray:
    """One row of logits after `apply_penalties`."""
    state = empty_state(slots=2)
    put_request(state, 1, prompt, generated, **params)
    logits = tensor(np.asarray([row], np.float32), "float32")
    ops.apply_penalties(logits, on_device(state), tensor([1], "int32"))
    return logits.numpy()[0]


def test_token_in_prompt_and_output_is_repeated_once_and_counted_as_generated_only():
    row = penalised(
        [2.0, 2.0, -2.0, 2.0], prompt=[0, 1, 1], generated=[1, 1, 2],
        penalty_score=2.0, frequency_score=0.25, presence_score=0.5,
    )  # fmt: skip
    np.testing.assert_array_equal(row, [1.0, 1.0 - 2 * 0.25 - 0.5, -4.0 - 0.25 - 0.5, 2.0])


def test_bias_comes_before_minimum_length_and_penalties():
    row = penalised(
        [1.0, 1.0, 1.0, 1.0], prompt=[0], generated=[], min_dec_len=1, eos_token_id=[1], stop_token_ids=[2],
        logit_bias_ids=[0, 1, 3], logit_bias_values=[-2.0, 100.0, 5.0], penalty_score=2.0,
    )  # fmt: skip
    np.testing.assert_array_equal(row, [-2.0, -INF, -INF, 6.0])


def test_only_allowed_tokens_keep_their_logits():
    row = penalised(
        [1.0, 2.0, 3.0, 4.0], prompt=[0], generated=[], allowed_token_ids=[3, 1, 3, 9], logit_bias_ids=[1],
        logit_bias_values=[0.5], penalty_score=2.0,
    )  # fmt: skip
    np.testing.assert_array_equal(row, [-INF, 2.5, -INF, 4.0])


def masked(row, *allowed) -> list[float]:
    """A row of logits under a mask of these tokens."""
    words = np.zeros(32 * (ops.mask_words(len(row)) - 1), bool)
    words[list(allowed)] = True
    mask = np.concatenate([[1], np.packbits(words, bitorder="little").view(np.int32)])
    logits = tensor(np.asarray([row], np.float32), "float32")
    ops.apply_token_masks(logits, tensor(mask[None], "int32"), tensor([0], "int32"))
    return logits.numpy()[0].tolist()


def test_a_greedy_token_under_a_mask_lies_anywhere_in_the_row():
    vocab = 5000
    for token, other in ((0, 4999), (4999, 0), (1023, 1024), (1024, 1023), (4991, 31), (4992, 4960)):
        logits = np.full((1, vocab), 3.0, np.float32)
        for allowed, wanted in (([token], token), ([token, other], min(token, other)), ([], 0)):
            bits = np.zeros(32 * (ops.mask_words(vocab) - 1), bool)
            bits[allowed] = True
            mask = np.concatenate([[1], np.packbits(bits, bitorder="little").view(np.int32)])[None]
            assert sample_one(logits[0], mask=mask, temperature=0.0) == wanted


def test_a_mask_keeps_what_it_allows_and_goes_before_what_else_forbids():
    assert masked([1.0, 2.0, 3.0], 0, 2) == [1.0, -INF, 3.0]
    assert masked([1.0, -INF, 3.0], 0, 1) == [1.0, -INF, -INF]
    assert masked([1.0, -INF, -INF], 1, 2) == [-INF, 0.0, 0.0]
    assert masked([1.0, NAN, 3.0], 1) == [-INF, 0.0, -INF]
    long = masked([1.0] * 70, 31, 32, 69)
    assert np.flatnonzero(np.isfinite(long)).tolist() == [31, 32, 69]


def test_masks_of_another_vocabulary_or_too_few_slots_are_refused():
    logits, slots = tensor(np.zeros((1, 64)), "float32"), tensor([1], "int32")
    with pytest.raises(REFUSED, match=r"masks: has shape \[2, 4\], needs \[any, 3\]"):
        ops.apply_token_masks(logits, tensor(np.zeros((2, 4)), "int32"), slots)
    with pytest.raises(REFUSED, match="row 0 names slot 1"):
        ops.apply_token_masks(logits, tensor(np.zeros((1, 3)), "int32"), slots)


def forbidden_after(prompt, generated, *sequences) -> list[int]:
    state = empty_state(slots=2)
    put_request(state, 1, prompt, generated)
    for index, sequence in enumerate(sequences):
        put_bad_seq(state, 1, index, sequence)
    logits = tensor(np.ones((1, 6), np.float32), "float32")
    ops.apply_penalties(logits, on_device(state), tensor([1], "int32"))
    return np.flatnonzero(logits.numpy()[0] == -INF).tolist()


def test_the_last_token_of_a_bad_sequence_is_masked_where_the_others_were_generated():
    assert forbidden_after([1], [2, 3], [5], [3, 4], [2, 3, 1], [1, 2, 3, 0], [2, 2]) == [1, 4, 5]
    assert forbidden_after([2, 3], [], [3, 4], [1]) == [1]
    assert forbidden_after([0], [4] * 7, [4] * 8) == [4]
    assert forbidden_after([0], [4] * 6, [4] * 8) == []


def test_end_tokens_are_free_once_the_minimum_is_reached():
    row = penalised([1.0, 1.0], prompt=[0], generated=[0, 0], min_dec_len=2, eos_token_id=[1])
    np.testing.assert_array_equal(row, [1.0, 1.0])


def test_ids_outside_the_vocabulary_are_ignored():
    row = penalised(
        [1.0, 1.0, 1.0], prompt=[500, 1], generated=[600], min_dec_len=9, eos_token_id=[3], stop_token_ids=[10**12],
        logit_bias_ids=[-1, 3, 10**15], logit_bias_values=[9.0, 9.0, 9.0], presence_score=1.0, penalty_score=2.0,
    )  # fmt: skip
    np.testing.assert_array_equal(row, [1.0, 0.5, 1.0])


def test_logprobs_of_rows_with_infinities_and_nans_are_numbers():
    rows = [[-INF] * 4, [NAN] * 4, [INF, 0, INF, 0], [NAN, 0, 0, -INF]]
    _, logprobs, ranks = ops.token_logprobs(tensor(rows, "float32"), tensor([1, 1, 2, 2], "int64"), 2)
    np.testing.assert_allclose(np.exp(logprobs.numpy()[:, 0]), [0.25, 0.25, 0.5, 0.5], rtol=1e-5)
    assert ranks.tolist() == [1, 1, 1, 1]


def test_more_alternatives_than_tokens_are_padded():
    ids, logprobs, _ = ops.token_logprobs(tensor([[1.0, 2.0]], "float32"), tensor([0], "int64"), 4)
    assert ids.tolist() == [[0, 1, 0, -1, -1]]
    assert np.isneginf(logprobs.numpy()[0, 3:]).all()
