"""NumPy twins of the forward ops: what each op computes, in a form to read. In-place ops write into their arrays here too.

Sums run in NumPy's order, so floats agree to rounding, not bit for bit.
"""

from __future__ import annotations

import numpy as np

from gpu_ops.twins import kv_cache

PANEL_COLUMNS = 32


def pack_weight(weight: np.ndarray) -> np.ndarray:
    """[out_features, in_features] -> [panels, in_features, 32], zeros beyond out_features."""
    out_features, in_features = weight.shape
    panels = -(-out_features // PANEL_COLUMNS)
    padded = np.zeros((panels * PANEL_COLUMNS, in_features), np.float32)
    padded[:out_features] = weight
    return np.ascontiguousarray(padded.reshape(panels, PANEL_COLUMNS, in_features).transpose(0, 2, 1))


def unpack_weight(packed: np.ndarray, out_features: int) -> np.ndarray:
    """Inverse of ``pack_weight``."""
    return packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:out_features]


def linear(x: np.ndarray, packed: np.ndarray, out_features: int, bias: np.ndarray | None = None) -> np.ndarray:
    """x W^T + bias."""
    y = x @ unpack_weight(packed, out_features).T
    return y if bias is None else y + bias


def embedding(weight: np.ndarray, ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Rows of a packed or plain table; zeros for ids outside [0, vocab_size)."""
    table = unpack_weight(weight, vocab_size) if weight.ndim == 3 else weight
    known = (ids >= 0) & (ids < vocab_size)
    return np.where(known[:, None], table[np.where(known, ids, 0)], np.float32(0))


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def add_rms_norm(x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """residual += x, then the norm of the sum."""
    residual += x
    return rms_norm(residual, weight, eps)


def rms_norm_add(x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float) -> None:
    """residual += the norm of x."""
    residual += rms_norm(x, weight, eps)


def qk_norm(
    qkv: np.ndarray, q_weight: np.ndarray, k_weight: np.ndarray, q_heads: int, kv_heads: int, eps: float
) -> None:
    """Norm each query and key head of qkv in place."""
    heads = qkv.reshape(len(qkv), q_heads + 2 * kv_heads, -1)
    heads[:, :q_heads] = rms_norm(heads[:, :q_heads], q_weight, eps)
    heads[:, q_heads:-kv_heads] = rms_norm(heads[:, q_heads:-kv_heads], k_weight, eps)


def projection_norm(qkv: np.ndarray, q_weight: np.ndarray, k_weight: np.ndarray, eps: float) -> None:
    """Norm the queries of each row of qkv together and its keys together, in place."""
    q, k = qkv[:, : len(q_weight)], qkv[:, len(q_weight) : len(q_weight) + len(k_weight)]
    q[:], k[:] = rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)


def swiglu(gate_up: np.ndarray) -> np.ndarray:
    """silu(gate) * up."""
    gate, up = np.split(gate_up, 2, axis=1)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up


def _rotate(heads: np.ndarray, cos_sin: np.ndarray) -> np.ndarray:
    """heads [heads, D] at one position, cos_sin [D]."""
    cos, sin = np.split(cos_sin, 2)
    first, second = np.split(heads, 2, axis=1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)


def rotary_kv_write(
    qkv: np.ndarray,
    cos_sin: np.ndarray,
    positions: np.ndarray,
    batch_id_per_token: np.ndarray,
    block_tables: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    q_heads: int,
    kv_heads: int,
) -> None:
    """Rotate queries in place; write rotated keys [.., D, entry] and values [.., entry, D] into their block."""
    block_size = v_cache.shape[2]
    keys, scales = kv_cache.parts(k_cache)
    heads = qkv.reshape(len(qkv), q_heads + 2 * kv_heads, -1)
    for row, slot, position in zip(heads, batch_id_per_token, positions):
        if slot < 0:
            continue
        block, entry = block_tables[slot, position // block_size], position % block_size
        row[:q_heads] = _rotate(row[:q_heads], cos_sin[position])
        rotated = _rotate(row[q_heads:-kv_heads], cos_sin[position])
        keys[block, :, :, entry], key_scales = kv_cache.store(rotated, keys.dtype)
        v_cache[block, :, entry, :], value_scales = kv_cache.store(row[-kv_heads:], keys.dtype)
        if scales is not None:
            scales[block, :, 0, entry], scales[block, :, 1, entry] = key_scales, value_scales


def paged_attention(
    qkv: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    block_tables: np.ndarray,
    positions: np.ndarray,
    batch_id_per_token: np.ndarray,
    q_heads: int,
    kv_heads: int,
    scale: float,
) -> np.ndarray:
    """softmax(scale * q k) v over cache positions 0..position of the row's slot; zeros where the slot is -1."""
    block_size, head_dim = v_cache.shape[2:]
    all_keys, scales = kv_cache.parts(k_cache)
    group = q_heads // kv_heads
    out = np.zeros((len(qkv), q_heads, head_dim), np.float32)
    queries = qkv.reshape(len(qkv), -1, head_dim)[:, :q_heads]
    for row, (slot, position) in enumerate(zip(batch_id_per_token, positions)):
        if slot < 0:
            continue
        blocks = block_tables[slot, : position // block_size + 1]
        keys = all_keys[blocks].transpose(1, 0, 3, 2).reshape(kv_heads, -1, head_dim)[:, : position + 1]
        values = v_cache[blocks].transpose(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)[:, : position + 1]
        keys, values = kv_cache.numbers(keys), kv_cache.numbers(values)
        if scales is not None:
            own = scales[blocks].transpose(2, 1, 0, 3).reshape(2, kv_heads, -1, 1)[:, :, : position + 1]
            keys, values = keys * own[0], values * own[1]
        for head in range(q_heads):
            scores = keys[head // group] @ queries[row, head] * np.float32(scale)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights / weights.sum() @ values[head // group]
    return out.reshape(len(qkv), -1)
