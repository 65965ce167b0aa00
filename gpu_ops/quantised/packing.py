"""From rows as files store them to the panels that the kernels read (``csrc/kernels/quantised/quantised.h``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gpu_ops.quantised.stored_rows import BLOCK_INPUTS, BLOCK_TYPES, StoredRows

PANEL_COLUMNS = 32
HEADER_WORDS = 16
MAGIC = 0x31746E6175716A62
MAX_PARTS = 6
# Panels that are packed at a time, so that the scratch memory stays small beside the result.
_PANELS_AT_ONCE = 64


def packed_bytes(parts: Iterable[tuple[str, int]], in_features: int) -> int:
    """Size of what ``pack_rows`` returns for parts of (kind, rows)."""
    blocks = in_features // BLOCK_INPUTS
    sizes = (-(-rows // PANEL_COLUMNS) * blocks * BLOCK_TYPES[kind].record_bytes for kind, rows in joined_parts(parts))
    return 8 * HEADER_WORDS + sum(sizes)


def joined_parts(parts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Parts of (kind, rows), neighbours of one kind as one."""
    joined: list[tuple[str, int]] = []
    for kind, rows in parts:
        if joined and joined[-1][0] == kind:
            joined[-1] = kind, joined[-1][1] + rows
        else:
            joined.append((kind, rows))
    return joined


def in_features_of(packed: np.ndarray) -> int:
    """Of a weight as ``pack_rows`` returned it."""
    return int(packed[: 8 * HEADER_WORDS].view(np.int64)[1])


def pack_rows(matrices: Sequence[StoredRows]) -> np.ndarray:
    """The rows of matrices, one after the other, as one quantised weight: uint8 [packed_bytes].

    Raises:
        ValueError: they differ in inputs or factor, or are of too many kinds.
    """
    in_features, factor = matrices[0].shape[1], matrices[0].factor
    parts = joined_parts((matrix.kind, len(matrix)) for matrix in matrices)
    if len({(matrix.shape[1], matrix.factor) for matrix in matrices}) > 1 or len(parts) > MAX_PARTS:
        raise ValueError("matrices of one weight have the same inputs and factor, and at most 6 changes of kind")
    out = np.zeros(packed_bytes(parts, in_features), np.uint8)
    header = out[: 8 * HEADER_WORDS].view(np.int64)
    factor_bits = int(np.float32(factor).view(np.int32))
    header[:4] = MAGIC, in_features, len(parts), factor_bits
    at, left = 8 * HEADER_WORDS, list(matrices)
    for i, (kind, rows) in enumerate(parts):
        block_type = BLOCK_TYPES[kind]
        header[4 + 2 * i : 6 + 2 * i] = block_type.type_id, rows
        blocks: list[np.ndarray] = []
        while sum(map(len, blocks)) < rows:
            blocks.append(left.pop(0).blocks)
        panels = -(-rows // PANEL_COLUMNS)
        size = panels * (in_features // BLOCK_INPUTS) * block_type.record_bytes
        _pack_panels(kind, np.concatenate(blocks), out[at : at + size].reshape(panels, -1, block_type.record_bytes))
        at += size
    return out


def _pack_panels(kind: str, rows: np.ndarray, out: np.ndarray) -> None:
    """rows uint8 [N, bytes of a row] -> out [panels, blocks, record_bytes], which is zero."""
    for first in range(0, len(out), _PANELS_AT_ONCE):
        part = rows[first * PANEL_COLUMNS : (first + _PANELS_AT_ONCE) * PANEL_COLUMNS]
        panels = out[first : first + _PANELS_AT_ONCE]
        missing = len(panels) * PANEL_COLUMNS - len(part)
        if missing:
            part = np.concatenate([part, np.zeros((missing, rows.shape[1]), np.uint8)])
        _pack_whole_panels(kind, part.reshape(len(panels), PANEL_COLUMNS, out.shape[1], -1), panels)


def _pack_whole_panels(kind: str, blocks: np.ndarray, out: np.ndarray) -> None:
    """blocks uint8 [panels, 32 columns, blocks, block_bytes] -> out [panels, blocks, record_bytes]."""
    block_type = BLOCK_TYPES[kind]
    head = 4 if block_type.has_minimum else 2
    panels, _, count, _ = blocks.shape
    for i in range(0, head, 2):  # the scale, and the minimum
        out[..., 32 * i : 32 * i + 64] = blocks[..., i : i + 2].transpose(0, 2, 1, 3).reshape(panels, count, 64)
    quants = blocks[..., head:]
    if block_type.bits == 4:
        codes = np.concatenate([quants & 15, quants >> 4], axis=-1).reshape(panels, 32, count, 4, 2, 4)
        quants = codes[..., 0, :] | (codes[..., 1, :] << 4)  # [panels, columns, blocks, 4, 4 inputs]
    else:
        quants = (quants ^ 0x80).reshape(panels, 32, count, 8, 4)
    out[..., 32 * head :] = quants.transpose(0, 2, 3, 1, 4).reshape(panels, count, -1)
