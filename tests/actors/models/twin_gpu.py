"""A stand-in for the GPU: the decoder takes its GPU paths, and each op that only a GPU has is computed by its NumPy twin."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import paddle
import pytest

from actors.device.cpu import CpuDevice
from actors.models import decoder
from gpu_ops import decode_ops, forward
from gpu_ops.twins import decode_ops as twins
from gpu_ops.twins.forward import embedding

OPS = {
    forward: (
        "linear", "embedding", "rms_norm", "add_rms_norm", "rms_norm_add", "qk_norm", "projection_norm", "swiglu",
        "rotary_kv_write", "paged_attention",
    ),
    decode_ops: ("small_batch_linear", "add_small_batch_linear", "decode_attention"),
    decoder: ("fused_layers",),
}  # fmt: skip


class TwinGpu(CpuDevice):
    """Says that it is a GPU. Weights are float32 in plain layout, the cache is the CPU's."""

    is_gpu = True
    dtype = "bfloat16"

    def empty(self, shape: list[int]) -> paddle.Tensor:
        return paddle.empty(shape, "float32")


def _linear(x, weight, out_features, bias=None, float32_output=False, batch_invariant=False):
    return paddle.to_tensor(twins.small_batch_linear(x.numpy(), weight.numpy(), _array(bias)))


def _embedding(weight, ids, vocab_size):
    return paddle.to_tensor(embedding(weight.numpy(), ids.numpy(), vocab_size))


def _small_batch_linear(x, weight, bias=None, norm_weight=None, eps=0.0, swiglu=False, float32_output=False):
    return paddle.to_tensor(
        twins.small_batch_linear(x.numpy(), weight.numpy(), _array(bias), _array(norm_weight), eps, swiglu)
    )


def _add_small_batch_linear(x, weight, residual, bias=None):
    paddle.assign(residual + _linear(x, weight, None, bias), residual)


def _decode_attention(qkv, cos_sin, positions, slots, tables, k_cache, v_cache, q_heads, kv_heads, scale, *_):
    qkv, heads = qkv.clone(), (q_heads, kv_heads)
    forward.rotary_kv_write(qkv, cos_sin, positions, slots, tables, k_cache, v_cache, *heads)
    return forward.paged_attention(qkv, k_cache, v_cache, tables, positions, slots, *heads, scale)


def _fused_layers(
    residual, input_norm, layers, caches, *, cos_sin, positions, batch_id_per_token, block_tables, q_heads, kv_heads, eps, scale,
    cu_seqlens_q=None, max_rows_per_slot=1, batch_invariant=False, layers_done=None,
):  # fmt: skip
    """The single ops in turn, over the twins that stand in their places."""
    heads, size = (q_heads, kv_heads), residual.shape[1]
    where = positions, batch_id_per_token, block_tables
    hidden = forward.rms_norm(residual, input_norm, eps)
    for layer, cache in zip(layers, caches, strict=True):
        qkv = _linear(hidden, layer.qkv, None, layer.qkv_bias)
        if layer.q_norm is not None:
            forward.qk_norm(qkv, layer.q_norm, layer.k_norm, *heads, eps)
        if max_rows_per_slot == 1:
            attended = _decode_attention(qkv, cos_sin, *where, *cache, *heads, scale)
        else:
            forward.rotary_kv_write(qkv, cos_sin, *where, *cache, *heads)
            attended = forward.paged_attention(qkv, *cache, block_tables, *where[:2], *heads, scale, cu_seqlens_q)
        attended = _linear(attended, layer.o, size, layer.o_bias)
        hidden = forward.add_rms_norm(attended, residual, layer.post_attention_norm, eps)
        gated = forward.swiglu(_linear(hidden, layer.gate_up, None, layer.gate_up_bias))
        hidden = forward.add_rms_norm(_linear(gated, layer.down, size, layer.down_bias), residual, layer.next_norm, eps)
    return hidden


def _array(tensor: paddle.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()


def install(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Put the twins in place of the ops; return the list that receives each call: (op, its numbers and absent tensors)."""
    calls: list[tuple[str, Any]] = []
    depth = [0]

    def recorded(name, op):
        @functools.wraps(op)
        def call(*args, **kwargs):
            if not depth[0]:
                given = [*args, *kwargs.values()]
                calls.append((name, [value for value in given if not isinstance(value, paddle.Tensor)]))
            depth[0] += 1
            try:
                return op(*args, **kwargs)
            finally:
                depth[0] -= 1

        return call

    shape = decoder.kv_cache_shape
    monkeypatch.setattr(decoder, "kv_cache_shape", lambda *args: shape(*args[:4]))
    monkeypatch.setattr(forward, "pack_weight", lambda weight: weight)
    monkeypatch.setattr(decode_ops, "has_small_linear", lambda in_features: False)
    for module, names in OPS.items():
        for name in names:
            op = globals().get(f"_{name}", getattr(module, name))
            monkeypatch.setattr(module, name, recorded(name, op))
    return calls
