"""Random slot states for the op tests, as NumPy arrays for the twins and as tensors for the ops."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle

from cluster.sampling_params import MAX_BAD_SEQS, MAX_STOP_SEQS
from gpu_ops.slots.share_inputs import ShareInputs, field_arrays


def empty_state(slots: int = 3, max_model_len: int = 32, block_size: int = 4) -> SimpleNamespace:
    """Empty slots for the twins."""
    return SimpleNamespace(**field_arrays(slots, max_model_len, block_size), block_size=block_size)


def put_request(state: SimpleNamespace, slot: int, prompt: list[int], generated: list[int] = (), **fields) -> None:
    """A running request whose next step computes its last token and samples; `fields` overwrite rows by name."""
    total = len(prompt) + len(generated)
    state.token_ids_all[slot] = -1
    state.token_ids_all[slot, :total] = [*prompt, *generated]
    state.prompt_lens[slot] = len(prompt)
    state.prefill_lens[slot] = total
    state.step_idx[slot] = len(generated)
    state.seq_lens_this_time[slot] = 1
    state.seq_lens_decoder[slot] = total - 1
    state.stop_flags[slot] = False
    state.block_tables[slot] = np.arange(state.block_tables.shape[1])
    state.max_dec_len[slot] = 10_000
    state.temperature[slot] = state.top_p[slot] = state.penalty_score[slot] = 1
    for name, value in fields.items():
        if np.ndim(value):
            getattr(state, name)[slot, : len(value)] = value
        else:
            getattr(state, name)[slot] = value


def put_stop_seqs(state: SimpleNamespace, slot: int, *sequences: list[int]) -> None:
    """Stop sequences of a slot."""
    for index, sequence in enumerate(sequences):
        state.stop_seqs[slot, index, : len(sequence)] = sequence
        state.stop_seqs_len[slot, index] = len(sequence)


def random_state(
    rng: np.random.Generator, slots: int, max_model_len: int, block_size: int, vocab: int
) -> SimpleNamespace:
    """Every field within its range; tokens and stop conditions from few ids, so that they meet often."""
    state = empty_state(slots, max_model_len, block_size)
    for slot in range(slots):
        if rng.random() < 0.15:
            continue
        total = int(rng.integers(1, max_model_len))
        prompt = int(rng.integers(1, total + 1))
        tokens = rng.integers(0, vocab, total)
        computed = int(rng.integers(0, total))
        put_request(
            state,
            slot,
            tokens[:prompt].tolist(),
            tokens[prompt:].tolist(),
            seq_lens_decoder=computed,
            seq_lens_this_time=rng.integers(0, total - computed + 1),
            stop_flags=rng.random() < 0.2,
            is_block_step=rng.random() < 0.2,
            min_dec_len=rng.integers(0, 8),
            max_dec_len=rng.integers(1, max_model_len),
            temperature=rng.choice([0.0, 0.3, 1.0, 1.7]),
            top_p=rng.choice([0.05, 0.5, 0.9, 1.0]),
            min_p=rng.choice([0.0, 0.05, 0.3]),
            top_k=rng.choice([0, 1, 5, vocab, 10 * vocab]),
            penalty_score=rng.choice([1.0, 1.3, 0.8]),
            presence_score=rng.choice([0.0, 0.7, -1.1]),
            frequency_score=rng.choice([0.0, 0.4, -0.6]),
            seeds=rng.integers(-(2**62), 2**62),
            num_logprobs=rng.integers(-1, 21),
            eos_token_id=rng.integers(0, vocab, rng.integers(0, 3)),
            stop_token_ids=rng.integers(0, vocab, rng.integers(0, 3)),
            logit_bias_ids=rng.integers(-1, vocab + 3, 5),
            logit_bias_values=rng.normal(size=5) * 3,
            allowed_token_ids=rng.integers(0, vocab + 3, rng.choice([0, 0, 1, 12])),
        )
        state.block_tables[slot] = np.where(rng.random(state.block_tables.shape[1]) < 0.8, state.block_tables[slot], -1)
        for index in range(MAX_STOP_SEQS):
            if rng.random() < 0.4:
                length = int(rng.integers(1, 5))
                state.stop_seqs[slot, index, :length] = rng.integers(0, vocab, length)
                state.stop_seqs_len[slot, index] = length
        # Often the tokens that were generated last, so that there is something to find.
        tail = tokens[prompt:][-3:].tolist()
        for index in rng.choice(MAX_BAD_SEQS, 12, replace=False):
            put_bad_seq(state, slot, int(index), [*tail[int(rng.integers(0, 4)) :], int(rng.integers(0, vocab + 3))])
    return state


def put_bad_seq(state: SimpleNamespace, slot: int, index: int, sequence: list[int]) -> None:
    """One sequence that the slot may not generate."""
    state.bad_seqs[slot, index, : len(sequence)] = sequence
    state.bad_seqs_len[slot, index] = len(sequence)


def on_device(state: SimpleNamespace) -> ShareInputs:
    """The same state as tensors."""
    return ShareInputs(
        **{name: paddle.to_tensor(value, place=paddle.CPUPlace()) for name, value in arrays(state).items()},
        block_size=state.block_size,
    )


def arrays(state: SimpleNamespace) -> dict[str, np.ndarray]:
    """The array fields of a twin state."""
    return {name: value for name, value in vars(state).items() if isinstance(value, np.ndarray)}


def assert_same_state(device: ShareInputs, twin: SimpleNamespace) -> None:
    """Every field of both, exactly."""
    for name, value in arrays(twin).items():
        np.testing.assert_array_equal(getattr(device, name).numpy(), value, err_msg=name)


def tensor(values, dtype: str) -> paddle.Tensor:
    """A CPU tensor, also for values without elements."""
    return paddle.to_tensor(np.asarray(values, dtype), place=paddle.CPUPlace())
