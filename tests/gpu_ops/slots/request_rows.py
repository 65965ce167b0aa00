"""Rows of the op that inserts requests, by the names of their values."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_ops.slots.insert_columns import FLOATS, INTS, NUM_INTS, SLOT


def columns(request: str) -> int | slice:
    """Where the value `request` stands in the ints or floats: an index, or a slice for several."""
    if request == "slot":
        return SLOT
    (column,) = (column for column in (*INTS, *FLOATS) if column.field.request == request)
    return slice(column.start, column.start + column.size) if column.shape else column.start


def int_row(**values: Any) -> np.ndarray:
    """One row of ints: `values` by name, shorter ones padded, and empty fields for the rest."""
    row = np.zeros(NUM_INTS, np.int64)
    for column in INTS:
        row[column.start : column.start + column.size] = column.field.empty
    for name, value in values.items():
        place = columns(name)
        if isinstance(place, int):
            row[place] = value
        else:
            row[place.start : place.start + len(value)] = value
    return row
