"""Where the values of a new request stand in the rows that ``insert_requests`` takes; derived from the declared fields."""

from __future__ import annotations

import math
from typing import NamedTuple

from gpu_ops.slots.slot_fields import FIELDS, FIXED_SIZES, TOKENS, SlotField


class Column(NamedTuple):
    """The columns of one field: ``size`` of them from ``start`` on, in a slot's row of ``shape``."""

    field: SlotField
    start: int
    size: int
    shape: tuple[int, ...]


def _row_shape(entry: SlotField) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else FIXED_SIZES[size] for size in entry.row_sizes)


def _columns(floats: bool, start: int) -> tuple[Column, ...]:
    """Single values first, then rows of several, each in the order of the fields."""
    columns = []
    chosen = [entry for entry in FIELDS if entry.request not in ("", TOKENS) and (entry.dtype == "float32") == floats]
    for entry in sorted(chosen, key=lambda entry: bool(entry.row_sizes)):
        shape = _row_shape(entry)
        columns.append(Column(entry, start, math.prod(shape), shape))
        start += columns[-1].size
    return tuple(columns)


# The first column of the ints is the slot.
SLOT = 0
INTS = _columns(floats=False, start=1)
FLOATS = _columns(floats=True, start=0)
NUM_INTS = INTS[-1].start + INTS[-1].size
NUM_FLOATS = FLOATS[-1].start + FLOATS[-1].size
