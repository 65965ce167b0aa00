"""From rows as files store them to the panels that the kernels read (``csrc/kernels/quantised/quantised.h``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gpu_ops.quantised.stored_rows import BLOCK_INPUTS, BLOCK_TYPES, BlockType, StoredRows

PANEL_COLUMNS = 32
HEADER_WORDS = 16
MAGIC = 0x31746E6175716A62
MAX_PARTS = 6
# Panels that are packed at a time, so that the scratch memory stays small beside the result.
_PANELS_AT_ONCE = 64


def packed_bytes(parts: Iterable[tuple[str, int]], in_features: int) -> int:
    """Size of what ``pack_rows`` returns for parts of (kind, rows)."""
    sizes = (-(-rows // PANEL_COLUMNS) * _panel_bytes(kind, in_features) for kind, rows in joined_parts(parts))
    return 8 * HEADER_WORDS + sum(sizes)


def _panel_bytes(kind: str, in_features: int) -> int:
    block_type = BLOCK_TYPES[kind]
    return in_features // BLOCK_INPUTS // block_type.record_blocks * block_type.record_bytes


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
        size = panels * _panel_bytes(kind, in_features)
        _pack_panels(kind, np.concatenate(blocks), out[at : at + size].reshape(panels, -1, block_type.record_bytes))
        at += size
    return out


def _pack_panels(kind: str, rows: np.ndarray, out: np.ndarray) -> None:
    """rows uint8 [N, bytes of a row] -> out [panels, records, record_bytes], which is zero."""
    for first in range(0, len(out), _PANELS_AT_ONCE):
        part = rows[first * PANEL_COLUMNS : (first + _PANELS_AT_ONCE) * PANEL_COLUMNS]
        panels = out[first : first + _PANELS_AT_ONCE]
        missing = len(panels) * PANEL_COLUMNS - len(part)
        if missing:
            part = np.concatenate([part, np.zeros((missing, rows.shape[1]), np.uint8)])
        blocks = part.reshape(len(panels), PANEL_COLUMNS, -1, BLOCK_TYPES[kind].block_bytes)
        _pack_whole_panels(BLOCK_TYPES[kind], blocks, panels)


def _pack_whole_panels(block_type: BlockType, blocks: np.ndarray, out: np.ndarray) -> None:
    """blocks uint8 [panels, 32 columns, blocks of the file, block_bytes] -> out [panels, records, record_bytes]."""
    panels, records, _ = out.shape
    if block_type.is_dense:
        numbers = blocks.reshape(panels, PANEL_COLUMNS, records, BLOCK_INPUTS, 2)
        out[...] = numbers.transpose(0, 2, 3, 1, 4).reshape(panels, records, -1)
        return
    head, factors, codes = (_parts_of_large if block_type.has_factors else _parts_of)(block_type, blocks)
    for i, numbers in enumerate(head):  # [panels, columns, records, 2]
        size = 2 * PANEL_COLUMNS
        out[..., i * size : (i + 1) * size] = numbers.transpose(0, 2, 1, 3).reshape(panels, records, size)
    # Blocks of 32 inputs, one behind the other.
    inner = out[..., block_type.head_bytes :].reshape(panels, records, block_type.record_blocks, -1)
    assert np.shares_memory(inner, out)

    def put(at: int, numbers: np.ndarray) -> int:
        """Numbers [panels, records, blocks, ...], of a block one after the other; returns where they end."""
        flat = numbers.reshape(*inner.shape[:3], -1)
        inner[..., at : at + flat.shape[-1]] = flat
        return at + flat.shape[-1]

    at = 0
    for numbers in factors:  # [panels, columns, records, blocks]
        at = put(at, numbers.transpose(0, 2, 3, 1))
    # [panels, records, blocks, input / 4, columns, input % 4]
    codes = codes.reshape(panels, PANEL_COLUMNS, *inner.shape[1:3], 8, 4).transpose(0, 2, 3, 4, 1, 5)
    low = codes if block_type.bits == 8 else (codes[:, :, :, ::2] & 15) | (codes[:, :, :, 1::2] << 4)
    at = put(at, low)
    if block_type.bits == 5:
        put(at, ((codes >> 4) << np.arange(8, dtype=np.uint8)[:, None, None]).sum(axis=3, dtype=np.uint8))
    elif block_type.bits == 6:
        halves = (codes >> 4).reshape(*inner.shape[:3], 2, 4, PANEL_COLUMNS, 4)
        put(at, (halves << np.arange(0, 8, 2, dtype=np.uint8)[:, None, None]).sum(axis=4, dtype=np.uint8))


def _nibbles(quants: np.ndarray) -> np.ndarray:
    """All low halves, then all high halves, of the last axis."""
    return np.concatenate([quants & 15, quants >> 4], axis=-1)


def _parts_of(block_type: BlockType, blocks: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Blocks of 32 inputs as scales and minima, 2 bytes each, no factors, and quants in the order of inputs, a byte each."""
    at = 4 if block_type.has_minimum else 2
    head = [blocks[..., i : i + 2] for i in range(0, at, 2)]
    if block_type.bits == 8:
        return head, [], blocks[..., at:] ^ 0x80
    if block_type.bits == 4:
        return head, [], _nibbles(blocks[..., at:])
    fifths = np.unpackbits(blocks[..., at : at + 4], axis=-1, bitorder="little")
    return head, [], _nibbles(blocks[..., at + 4 :]) | (fifths << 4)


def _parts_of_large(block_type: BlockType, blocks: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Blocks of 256 inputs as scales and minima (of the other sign, as they are subtracted), factors of each 32 inputs, and
    quants."""
    *outer, count, _ = blocks.shape
    if not block_type.has_minimum:
        of_halves = blocks[..., 192:208].reshape(*outer, count, 8, 2)
        codes = _nibbles(blocks[..., :128].reshape(*outer, count, 2, 64)).reshape(*outer, count, 8, 32)
        places = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        high = (blocks[..., 128:192].reshape(*outer, count, 2, 1, 32) >> places) & 3
        return [blocks[..., 208:210]], [of_halves[..., 0], of_halves[..., 1]], codes | (high.reshape(codes.shape) << 4)
    head = [blocks[..., :2], blocks[..., 2:4] ^ np.array([0, 0x80], np.uint8)]
    first, second, third = (blocks[..., i : i + 4] for i in (4, 8, 12))
    factors = [
        np.concatenate([low & 63, shared | ((low >> 2) & 0x30)], axis=-1)
        for low, shared in ((first, third & 15), (second, third >> 4))
    ]
    codes = _nibbles(blocks[..., -128:].reshape(*outer, count, 4, 32)).reshape(*outer, count, 8, 32)
    if block_type.bits == 5:
        bits = np.unpackbits(blocks[..., 16:48, None], axis=-1, bitorder="little")  # [..., 32 inputs, 8 blocks]
        codes = codes | (bits.swapaxes(-1, -2) << 4)
    return head, factors, codes
