"""NumPy twins of the ops on quantised weights. They give the bits of the kernels: every float is rounded where these round."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_BLOCK = _COLUMNS = 32
_HEADER_BYTES = 128
# type: (bits of a quant, zero point, has a minimum, has factors)
_TYPES = {
    2: (4, 8, False, False), 3: (4, 0, True, False), 6: (5, 16, False, False), 7: (5, 0, True, False),
    8: (8, 128, False, False), 12: (4, 0, True, True), 13: (5, 0, True, True),
    14: (6, 32, False, True), 20: (4, 0, False, False),
}  # fmt: skip
_IQ4_NL = 20
_CODES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int32)
_F16, _BF16 = 1, 30


class Unpacked(NamedTuple):
    """A packed weight: quants less their zero point int32 [N, B, 32], scales of the first and last 16 inputs float32 [N, B, 2],
    which rows have two of them, minima float32 [N, B], which rows have those, and the factor on all. Numbers float32 [N, K],
    with the factor, of rows that are not quantised, and which those are."""

    quants: np.ndarray
    scales: np.ndarray
    has_halves: np.ndarray
    minima: np.ndarray
    has_minimum: np.ndarray
    factor: np.float32
    numbers: np.ndarray
    is_dense: np.ndarray


def unpack(weight: np.ndarray) -> Unpacked:
    """Inverse of ``gpu_ops.quantised.packing.pack_rows``."""
    header = weight[:_HEADER_BYTES].view(np.int64)
    blocks, factor = int(header[1]) // _BLOCK, np.int64(header[3]).astype(np.int32).view(np.float32)
    at, parts = _HEADER_BYTES, []
    for type_id, rows in header[4 : 4 + 2 * int(header[2])].reshape(-1, 2).tolist():
        panels = -(-rows // _COLUMNS)
        size = panels * _panel_bytes(type_id, blocks)
        records = weight[at : at + size].reshape(panels, -1)
        at += size
        unpacked = _dense_part if type_id in (_F16, _BF16) else _quantised_part
        parts.append([array[:rows] for array in unpacked(type_id, records, blocks, factor)])
    quants, scales, has_halves, minima, has_minimum, numbers, is_dense = map(np.concatenate, zip(*parts, strict=True))
    return Unpacked(quants, scales, has_halves, minima, has_minimum, factor, numbers, is_dense)


def _panel_bytes(type_id: int, blocks: int) -> int:
    if type_id in (_F16, _BF16):
        return blocks * 32 * 64
    bits, _, has_minimum, has_factors = _TYPES[type_id]
    head = 128 if has_minimum else 64
    return blocks // 8 * (head + 8 * (64 + 128 * bits)) if has_factors else blocks * (head + 128 * bits)


def _dense_part(type_id: int, panels: np.ndarray, blocks: int, factor: np.float32) -> list[np.ndarray]:
    halves = np.ascontiguousarray(panels).view(np.uint16).reshape(len(panels), -1, _COLUMNS)
    as_floats = halves.view(np.float16).astype(np.float32)
    if type_id == _BF16:
        as_floats = (halves.astype(np.uint32) << 16).view(np.float32)
    numbers = as_floats.transpose(0, 2, 1).reshape(len(panels) * _COLUMNS, -1)
    count, no = len(numbers), np.zeros(len(numbers), bool)
    quants, minima = np.zeros((count, blocks, _BLOCK), np.int32), np.zeros((count, blocks), np.float32)
    return [quants, np.zeros((count, blocks, 2), np.float32), no, minima, no, numbers * factor, ~no]


def _quantised_part(type_id: int, panels: np.ndarray, blocks: int, factor: np.float32) -> list[np.ndarray]:
    bits, zero, has_minimum, has_factors = _TYPES[type_id]
    head, a_record = (128 if has_minimum else 64), (8 if has_factors else 1)
    records = panels.reshape(len(panels), blocks // a_record, -1)
    inner = records[..., head:].reshape(len(panels), blocks, -1)
    count = len(panels) * _COLUMNS

    def numbers(first: int) -> np.ndarray:
        """Of a record, [N, B]."""
        halves = np.ascontiguousarray(records[..., first : first + 64]).view(np.float16)
        return halves.transpose(0, 2, 1).reshape(count, -1).astype(np.float32).repeat(a_record, axis=-1)

    def factors(first: int, dtype: type) -> np.ndarray:
        wholes: np.ndarray = np.ascontiguousarray(inner[..., first : first + 32]).view(dtype)
        return wholes.transpose(0, 2, 1).reshape(count, -1).astype(np.float32)

    codes = inner[..., 64 * has_factors :].reshape(len(panels), blocks, bits, _COLUMNS, 4)
    if bits < 8:
        groups, high = np.arange(8, dtype=np.uint8)[:, None, None], np.zeros_like(codes[:, :, :1])
        if bits == 5:
            high = codes[:, :, 4:5] >> groups & 1
        elif bits == 6:
            high = codes[:, :, 4:].repeat(4, axis=2) >> groups % 4 * 2 & 3
        low = np.stack([codes[:, :, :4] & 15, codes[:, :, :4] >> 4], axis=3)
        codes = low.reshape(len(panels), blocks, 8, _COLUMNS, 4) | (high << 4)
    codes = codes.reshape(len(panels), blocks, 8, _COLUMNS, 4).transpose(0, 3, 1, 2, 4).reshape(count, blocks, _BLOCK)
    quants = _CODES[codes] if type_id == _IQ4_NL else codes.astype(np.int32) - zero
    both, smallest = [numbers(0)] * 2, numbers(64) if has_minimum else np.zeros((count, blocks), np.float32)
    if has_factors and has_minimum:
        both, smallest = [numbers(0) * factors(0, np.uint8)] * 2, smallest * factors(32, np.uint8)
    elif has_factors:
        both = [numbers(0) * factors(at, np.int8) for at in (0, 32)]
    with_halves = np.full(count, has_factors and not has_minimum)
    nothing = np.zeros((count, blocks * _BLOCK), np.float32), np.zeros(count, bool)
    return [quants, np.stack(both, axis=-1), with_halves, smallest, np.full(count, has_minimum), *nothing]


@np.errstate(over="ignore", invalid="ignore")
def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32, rounded once: float64 holds the product exactly, and of the sum rounded to odd all that counts."""
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = np.asarray(product + c)
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    away = (error > 0) == (total > 0)
    inexact = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    return np.where(inexact, bits + np.where(away, 1, -1), bits).view(np.float64).astype(np.float32)


def quantise_rows(x: np.ndarray, factor: np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [T, K] as quants int32 [T, B, 32], d and s float32 [T, B]."""
    blocks = x.reshape(len(x), -1, _BLOCK)
    finite = np.isfinite(blocks).all(axis=-1)
    amax = np.where(finite, np.abs(np.where(np.isfinite(blocks), blocks, 0)).max(axis=-1), np.float32(0))
    large = amax >= np.float32(2.0**-100)
    inverse = np.float32(127) / np.where(large, amax, np.float32(1))
    quants = np.where(large[..., None], np.rint(np.where(large[..., None], blocks, 0) * inverse[..., None]), 0)
    d = np.where(large, amax / np.float32(127) * factor, np.float32(0))
    d = np.where(finite, d, np.float32(np.nan))
    return quants.astype(np.int32), d, d * quants.sum(axis=-1).astype(np.float32)


@np.errstate(over="ignore", invalid="ignore")
def quantised_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x W^T + bias: over ascending blocks one chain of fused multiply-adds an output; over ascending inputs, which are not
    rounded, where the weight is numbers."""
    quants, scales, has_halves, minima, has_minimum, factor, numbers, is_dense = unpack(weight)
    inputs, d, s = quantise_rows(x, factor)
    total = np.zeros((len(x), len(quants)), np.float32)
    if bias is not None:
        total += bias
    for block in range(quants.shape[1]):
        first, last = (inputs[:, block, half] @ quants[:, block, half].T for half in (slice(16), slice(16, 32)))
        early, late = (scales[:, block, half] * d[:, block, None] for half in (0, 1))
        total = np.where(has_halves, fma(first.astype(np.float32), early, total), total)
        total = fma(np.where(has_halves, last, first + last).astype(np.float32), late, total)
        total = np.where(has_minimum, fma(minima[:, block], s[:, block, None], total), total)
    if is_dense.any():
        chain = np.zeros((len(x), len(quants)), np.float32) + (0 if bias is None else bias)
        for k in range(x.shape[1]):
            chain = fma(x[:, k, None], numbers[:, k], chain)
        total = np.where(is_dense, chain, total)
    return total


def quantised_embedding(weight: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Rows as float32; zeros where there is none."""
    quants, scales, _, minima, has_minimum, factor, numbers, is_dense = unpack(weight)
    table = scales.repeat(16, axis=-1) * quants.astype(np.float32)
    table = np.where(has_minimum[:, None, None], table + minima[..., None], table).reshape(len(quants), -1) * factor
    table = np.where(is_dense[:, None], numbers, table)
    known = (ids >= 0) & (ids < len(table))
    return np.where(known[:, None], table[np.where(known, ids, 0)], np.float32(0))
