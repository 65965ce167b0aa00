"""A decoder with random weights, written with the ops alone, and the rows and slots of a step: what the op benchmarks time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle

from actors.models.decoder import largest_small_batch
from gpu_ops import decode_ops
from gpu_ops import forward as ops
from gpu_ops.kv_cache import kv_cache_shape
from gpu_ops.slots.share_inputs import ShareInputs, field_arrays

BLOCK_SIZE = 64
DTYPE_BYTES = 2


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    layers: int
    hidden: int
    inner: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """[out_features, in_features] of a layer's matmuls."""
        qkv = (self.q_heads + 2 * self.kv_heads) * self.head_dim
        return {
            "qkv": (qkv, self.hidden),
            "o": (self.hidden, self.q_heads * self.head_dim),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
        }

    def step_bytes(self, rows: int, context: int) -> int:
        """Bytes of weights, and of the context's keys and values, that a decoding step cannot avoid to read."""
        weights = self.layers * sum(n * k for n, k in self.weights.values()) + self.vocab * self.hidden
        return DTYPE_BYTES * (weights + 2 * rows * context * self.layers * self.kv_heads * self.head_dim)


MODELS = {
    "llama_8b": Shape(32, 4096, 14336, 32, 8, 128, 128256),
    "smollm2": Shape(30, 576, 1536, 9, 3, 64, 49152),
}


def upload(array: np.ndarray) -> paddle.Tensor:
    """A GPU tensor; uint16 arrays become bfloat16."""
    return paddle.to_tensor(array, place=paddle.CUDAPlace(0))


class RandomBits:
    """bfloat16 values as uint16, cut from one random buffer, because drawing billions would take minutes."""

    def __init__(self) -> None:
        values = np.random.default_rng(0).normal(size=1 << 23).astype(np.float32)
        self._bits = (values.view(np.uint32) >> 16).astype(np.uint16)

    def __call__(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        count = int(np.prod(shape))
        # Powers of two change the exponent alone.
        bits = self._bits + np.int64(np.log2(scale) * 128).astype(np.uint16)
        return np.resize(bits, count).reshape(shape)


class Model:
    """Random weights and the forward pass of a decoder, written with the ops alone."""

    def __init__(self, shape: Shape, bits: RandomBits, num_blocks: int, max_positions: int) -> None:
        self.shape = shape
        self.batch_invariant = False
        self.layers = [
            {name: upload(bits(*size, scale=2.0**-6)) for name, size in shape.weights.items()}
            for _ in range(shape.layers)
        ]
        self.head = upload(bits(shape.vocab, shape.hidden, scale=2.0**-6))
        self.norm = upload(np.full(shape.hidden, 0x3F80, np.uint16))
        cache, _ = kv_cache_shape(num_blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim, on_gpu=True)
        self.caches = [(upload(bits(*cache)), upload(bits(*cache))) for _ in range(shape.layers)]
        angles = np.arange(max_positions)[:, None] / 10000 ** (np.arange(shape.head_dim // 2) * 2 / shape.head_dim)
        self.cos_sin = upload(np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))

    def linear(self, x: paddle.Tensor, layer: dict, name: str, **options) -> paddle.Tensor:
        """A layer's matmul by name."""
        options = {"batch_invariant": self.batch_invariant, **options}
        return ops.linear(x, layer[name], self.shape.weights[name][0], **options)

    def logits(self, hidden: paddle.Tensor, **options) -> paddle.Tensor:
        """float32 logits."""
        return ops.linear(hidden, self.head, self.shape.vocab, float32_output=True, **options)

    def layer_matmuls(self, inputs: dict[str, paddle.Tensor], **options) -> list[paddle.Tensor]:
        """All matmuls of the layers alone."""
        return [self.linear(inputs[name], layer, name, **options) for layer in self.layers for name in layer]

    def matmuls(self, inputs: dict[str, paddle.Tensor], last: paddle.Tensor, **options) -> list[paddle.Tensor]:
        """All matmuls of a step alone."""
        return [*self.layer_matmuls(inputs, **options), self.logits(last, **options)]

    def is_small_batch(self, rows: Rows) -> bool:
        """Whether the engine's decoder takes ``gpu_ops.decode_ops``'s matmuls."""
        shapes = self.shape.weights.values()
        layer_bytes, most_in_features = sum(DTYPE_BYTES * n * k for n, k in shapes), max(k for _, k in shapes)
        return rows.positions.shape[0] <= largest_small_batch(layer_bytes, most_in_features)

    def forward_small_batch(self, ids: paddle.Tensor, rows: Rows) -> paddle.Tensor:
        """As ``Decoder.forward_small_batch``."""
        residual = ops.embedding(self.head, ids, self.shape.vocab)
        for layer, (k_cache, v_cache) in zip(self.layers, self.caches):
            qkv = decode_ops.small_batch_linear(residual, layer["qkv"], None, self.norm, 1e-5)
            decode_ops.add_small_batch_linear(rows.attention(self, qkv, k_cache, v_cache), layer["o"], residual)
            gated = decode_ops.small_batch_linear(residual, layer["gate_up"], None, self.norm, 1e-5, swiglu=True)
            decode_ops.add_small_batch_linear(gated, layer["down"], residual)
        return ops.rms_norm(residual, self.norm, 1e-5)

    def forward(self, ids: paddle.Tensor, rows: Rows) -> paddle.Tensor:
        """Hidden states after the final norm, as ``Decoder.forward``."""
        if rows.longest == 1 and self.is_small_batch(rows):
            return self.forward_small_batch(ids, rows)
        s = self.shape
        residual = ops.embedding(self.head, ids, s.vocab)
        hidden = ops.rms_norm(residual, self.norm, 1e-5)
        for layer, (k_cache, v_cache) in zip(self.layers, self.caches):
            qkv = self.linear(hidden, layer, "qkv")
            if rows.longest > 1:
                rows.rotary(self, qkv, k_cache, v_cache)
            attended = rows.attention(self, qkv, k_cache, v_cache)
            hidden = ops.add_rms_norm(self.linear(attended, layer, "o"), residual, self.norm, 1e-5)
            gated = ops.swiglu(self.linear(hidden, layer, "gate_up"))
            hidden = ops.add_rms_norm(self.linear(gated, layer, "down"), residual, self.norm, 1e-5)
        return hidden


class Rows:
    """Rows of a step on the GPU: `counts[slot]` last positions of `lengths[slot]`."""

    def __init__(self, counts: list[int], lengths: list[int], table_width: int) -> None:
        tables = np.arange(len(lengths) * table_width, dtype=np.int32).reshape(len(lengths), table_width)
        self.longest = max(counts)
        self.tables = upload(tables)
        self.positions = upload(
            np.concatenate([np.arange(length - n, length) for n, length in zip(counts, lengths)]).astype(np.int32)
        )
        self.slots = upload(np.repeat(np.arange(len(counts)), counts).astype(np.int32))
        self.starts = upload(np.cumsum([0, *counts]).astype(np.int32))

    def rotary(self, model: Model, qkv: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> None:
        s = model.shape
        ops.rotary_kv_write(qkv, model.cos_sin, self.positions, self.slots, self.tables, k, v, s.q_heads, s.kv_heads)

    def attention(
        self, model: Model, qkv: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, **options
    ) -> paddle.Tensor:
        s = model.shape
        options = {"batch_invariant": model.batch_invariant, **options}
        if self.longest > 1:
            return ops.paged_attention(
                qkv, k, v, self.tables, self.positions, self.slots, s.q_heads, s.kv_heads, s.head_dim**-0.5,
                self.starts, self.longest, **options,
            )  # fmt: skip
        return decode_ops.decode_attention(
            qkv, model.cos_sin, self.positions, self.slots, self.tables, k, v, s.q_heads, s.kv_heads,
            s.head_dim**-0.5, **options,
        )  # fmt: skip


def running_state(rows: int, context: int, max_model_len: int, temperature: float, top_p: float) -> ShareInputs:
    """Slots that all decode at the same context length."""
    arrays = field_arrays(rows, max_model_len, BLOCK_SIZE)
    arrays["token_ids_all"][:, :context] = 7
    arrays["prompt_lens"][:] = arrays["prefill_lens"][:] = context
    arrays["seq_lens_this_time"][:] = 1
    arrays["seq_lens_decoder"][:] = context - 1
    arrays["stop_flags"][:] = False
    arrays["max_dec_len"][:] = 1 << 30
    arrays["temperature"][:], arrays["top_p"][:] = temperature, top_p
    arrays["block_tables"][:] = np.arange(arrays["block_tables"].size).reshape(arrays["block_tables"].shape)
    tensors = {name: upload(array) for name, array in arrays.items()}
    tensors["not_need_stop"] = paddle.to_tensor(arrays["not_need_stop"], place=paddle.CUDAPinnedPlace())
    return ShareInputs(**tensors, block_size=BLOCK_SIZE)
