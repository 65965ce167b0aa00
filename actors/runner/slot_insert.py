"""The packed form in which a request enters its slot: the columns that the slot fields declare, filled from the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.scheduling.step_plan import SlotInsert
from gpu_ops.slots.insert_columns import FLOATS, INTS, NUM_FLOATS, NUM_INTS, Column

# Single values stand before rows of several, so that they are entered in one go.
_SINGLE_INTS, _SINGLE_FLOATS = ([column for column in columns if not column.shape] for columns in (INTS, FLOATS))
_INT_ROWS, _FLOAT_ROWS = INTS[len(_SINGLE_INTS) :], FLOATS[len(_SINGLE_FLOATS) :]


def _padding(columns: tuple[Column, ...], dtype: type) -> np.ndarray:
    return np.concatenate([np.full(column.size, column.field.empty, dtype) for column in columns])


_INT_PADDING, _FLOAT_PADDING = _padding(_INT_ROWS, np.int64), _padding(_FLOAT_ROWS, np.float32)


def pack_inserts(
    inserts: Sequence[SlotInsert], eos_token_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ints int64 [n, NUM_INTS], floats float32 [n, NUM_FLOATS], tokens int64 [n, W], for n requests; W is a power of two, so that
    there are few sizes."""
    ints = np.empty((len(inserts), NUM_INTS), np.int64)
    floats = np.empty((len(inserts), NUM_FLOATS), np.float32)
    ints[:, _INT_ROWS[0].start :] = _INT_PADDING
    floats[:, _FLOAT_ROWS[0].start :] = _FLOAT_PADDING
    longest = max(len(insert.token_ids) for insert in inserts)
    tokens = np.full((len(inserts), power_of_two(longest)), -1, np.int64)
    for row, insert in enumerate(inserts):
        tokens[row, : len(insert.token_ids)] = insert.token_ids
        values = _Values(insert, eos_token_ids)
        ints[row, : _INT_ROWS[0].start] = (insert.slot, *map(values.single, _SINGLE_INTS))
        floats[row, : _FLOAT_ROWS[0].start] = tuple(map(values.single, _SINGLE_FLOATS))
        for column in _INT_ROWS:
            _fill(ints[row], column, values.of(column))
        for column in _FLOAT_ROWS:
            _fill(floats[row], column, values.of(column))
    return ints, floats, tokens


def power_of_two(count: int) -> int:
    """The least one that is no less than ``count``, which is at least 1."""
    return 1 << (count - 1).bit_length()


class _Values:
    """What a request says, by the names that the fields declare: of itself, or a sampling parameter as it stands."""

    def __init__(self, insert: SlotInsert, eos_token_ids: Sequence[int]) -> None:
        self._params = params = insert.params
        num_tokens = len(insert.token_ids)
        self._named: dict[str, Any] = {
            "prompt_len": insert.num_prompt_tokens,
            "prefill_len": num_tokens,
            "step_idx": num_tokens - insert.num_prompt_tokens,
            "num_computed": insert.num_computed_tokens,
            "eos_token_ids": () if params.ignore_eos else eos_token_ids,
            "stop_seq_lens": [len(sequence) for sequence in params.stop_token_seqs],
            "bad_seq_lens": [len(sequence) for sequence in params.bad_token_seqs],
            "logit_bias_ids": list(params.logit_bias),
            "logit_bias_values": list(params.logit_bias.values()),
        }

    def of(self, column: Column) -> Any:
        name = column.field.request
        return self._named[name] if name in self._named else getattr(self._params, name)

    def single(self, column: Column) -> Any:
        """One value; what an empty slot holds for None."""
        value = self.of(column)
        return column.field.empty if value is None else value


def _fill(row: np.ndarray, column: Column, value: Sequence) -> None:
    """Enter as many values as the request has; the rest of its row is padded."""
    if not value:
        return
    place = row[column.start : column.start + column.size].reshape(column.shape)
    if place.ndim == 1:
        place[: len(value)] = value
        return
    for line, items in zip(place, value):
        line[: len(items)] = items
