"""The decoder-only transformer that Llama, Mistral, Qwen2, Qwen3 and dense ERNIE 4.5 share: they differ by switches
of ``ModelConfig`` (attention bias, head norms, tied head), not by code.

Pre-norm residual blocks with RMSNorm, rotary grouped-query attention over the paged KV cache, SwiGLU.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import paddle

from actors.device.cpu import CpuDevice
from actors.models.config import ModelConfig
from cluster.cache import Progress
from gpu_ops import decode
from gpu_ops import forward as ops
from gpu_ops.decoder_layer import decoder_layer

# A layer up to this size is bound by launches rather than by memory, so that folding layers together pays for more rows.
_SMALL_LAYER_BYTES = 16 << 20
_FEW_ROWS, _FEW_ROWS_OF_SMALL_LAYERS = 8, 32


def most_few_rows(layer_bytes: int, most_in_features: int) -> int:
    """Most decoding rows for which this GPU's folded matmuls are faster than cuBLAS's, where those of a layer take so many
    bytes and inputs."""
    if layer_bytes > _SMALL_LAYER_BYTES:
        return _FEW_ROWS
    return decode.MAX_SKINNY_ROWS if decode.has_small_linear(most_in_features) else _FEW_ROWS_OF_SMALL_LAYERS


class BatchRows(NamedTuple):
    """Which sequence and position each packed row belongs to.

    ids int64 [T], positions int32 [T], slots int32 [T] (-1 = surplus row), block_tables int32 [B, NB].
    cu_seqlens_q int32 [B + 1] and a bound of the rows of a slot let a GPU compute a prompt's rows together.
    """

    ids: paddle.Tensor
    positions: paddle.Tensor
    slots: paddle.Tensor
    block_tables: paddle.Tensor
    cu_seqlens_q: paddle.Tensor | None = None
    max_rows_per_slot: int = 1


class Linear:
    """A weight in the matmul's own layout, [out_features, in_features] outside, with an optional bias."""

    def __init__(self, device: CpuDevice, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
        self.out_features = weight.shape[0]
        self.packed = ops.pack_weight(device.tensor(weight))
        self.bias = None if bias is None else device.tensor(bias)
        self._batch_invariant = device.batch_invariant

    def __call__(self, x: paddle.Tensor, float32_output: bool = False) -> paddle.Tensor:
        return ops.linear(x, self.packed, self.out_features, self.bias, float32_output, self._batch_invariant)


class Layer:
    """Weights of one decoder block."""

    input_norm: paddle.Tensor
    post_attention_norm: paddle.Tensor
    q_norm: paddle.Tensor | None = None
    k_norm: paddle.Tensor | None = None
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear


class Decoder:
    """Weights and forward pass in the device's type, one copy in memory.

    Args:
        config: the architecture.
        max_model_len: rows of the rotary table.
        device: where it computes; default the CPU.
    """

    def __init__(self, config: ModelConfig, max_model_len: int, device: CpuDevice | None = None) -> None:
        self.config = config
        self.device = device or CpuDevice()
        self.cos_sin = self.device.tensor(config.rope_table(max_model_len))
        self.scale = config.head_dim**-0.5
        self.layers: list[Layer] = [Layer() for _ in range(config.num_layers)]
        self.final_norm: paddle.Tensor
        self.embed: Linear
        self.lm_head: Linear

    def load_weights(self, weights: Iterator[tuple[str, np.ndarray]], progress: Progress | None = None) -> None:
        """Take (Hugging Face name, array of the device's type) pairs in any order; fused parts wait only for their partners."""
        parts: dict[str, np.ndarray] = {}
        owners = {
            name: (index, attribute, names)
            for index in range(len(self.layers))
            for attribute, names in self._layer_parameters(index).items()
            for name in names
        }
        num_left = [len(self._layer_parameters(index)) for index in range(len(self.layers))]
        for name, array in weights:
            if name == "model.embed_tokens.weight":
                self.embed = Linear(self.device, array)
            elif name == "lm_head.weight":
                self.lm_head = Linear(self.device, array)
            elif name == "model.norm.weight":
                self.final_norm = self.device.tensor(array)
            else:
                index, attribute, names = owners[name]
                parts[name] = array
                if all(member in parts for member in names):
                    setattr(
                        self.layers[index], attribute, _parameter(self.device, attribute, [parts.pop(n) for n in names])
                    )
                    num_left[index] -= 1
                    if progress and num_left[index] == 0:
                        progress("layers", sum(left == 0 for left in num_left), len(self.layers))
        if self.config.tie_word_embeddings:
            self.lm_head = self.embed

    def _layer_parameters(self, index: int) -> dict[str, list[str]]:
        """Attribute of Layer to the names it is made of: weights in order of output rows, then biases."""
        config, prefix = self.config, f"model.layers.{index}."

        def linear(modules: list[str], has_bias: bool) -> list[str]:
            kinds = ("weight", "bias") if has_bias else ("weight",)
            return [f"{prefix}{module}_proj.{kind}" for kind in kinds for module in modules]

        names = {
            "input_norm": [prefix + "input_layernorm.weight"],
            "post_attention_norm": [prefix + "post_attention_layernorm.weight"],
            "qkv": linear(["self_attn.q", "self_attn.k", "self_attn.v"], config.attention_bias),
            "o": linear(["self_attn.o"], config.attention_out_bias),
            "gate_up": linear(["mlp.gate", "mlp.up"], config.mlp_bias),
            "down": linear(["mlp.down"], config.mlp_bias),
        }
        if config.qk_norm:
            names |= {"q_norm": [prefix + "self_attn.q_norm.weight"], "k_norm": [prefix + "self_attn.k_norm.weight"]}
        return names

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> list[tuple[paddle.Tensor, paddle.Tensor]]:
        """One (k, v) pair of cache tensors per layer."""
        config, device = self.config, self.device
        k_shape, v_shape = ops.kv_cache_shape(
            num_blocks, block_size, config.num_kv_heads, config.head_dim, device.is_gpu
        )
        return [(device.kv_cache(k_shape), device.kv_cache(v_shape)) for _ in self.layers]

    def forward(self, rows: BatchRows, kv_cache: list[tuple[paddle.Tensor, paddle.Tensor]]) -> paddle.Tensor:
        """Hidden states after the final norm, [T, hidden_size]; keys and values of the rows enter the cache."""
        if self.device.is_gpu:
            takes_few = rows.positions.shape[0] <= self.max_few_rows and rows.max_rows_per_slot == 1
            return (self.forward_few_rows if takes_few else self.forward_op_by_op)(rows, kv_cache)
        config, eps = self.config, self.config.rms_norm_eps
        residual = ops.embedding(self.embed.packed, rows.ids, config.vocab_size)
        hidden = ops.rms_norm(residual, self.layers[0].input_norm, eps)
        for layer, (k_cache, v_cache), next_norm in zip(self.layers, kv_cache, self._next_norms(), strict=True):
            hidden = decoder_layer(
                hidden,
                residual,
                qkv=layer.qkv.packed,
                qkv_bias=layer.qkv.bias,
                q_norm=layer.q_norm,
                k_norm=layer.k_norm,
                o=layer.o.packed,
                o_bias=layer.o.bias,
                gate_up=layer.gate_up.packed,
                gate_up_bias=layer.gate_up.bias,
                down=layer.down.packed,
                down_bias=layer.down.bias,
                post_attention_norm=layer.post_attention_norm,
                next_norm=next_norm,
                cos_sin=self.cos_sin,
                positions=rows.positions,
                batch_id_per_token=rows.slots,
                block_tables=rows.block_tables,
                k_cache=k_cache,
                v_cache=v_cache,
                q_heads=config.num_heads,
                kv_heads=config.num_kv_heads,
                eps=eps,
                scale=self.scale,
            )
        return hidden

    @functools.cached_property
    def max_few_rows(self) -> int:
        """Most rows of a decoding step that the GPU computes with ``gpu_ops.decode``'s matmuls rather than cuBLAS's.

        The two differ in bits, so ``batch_invariant`` keeps to one; the folded norm needs bfloat16's range.
        """
        if self.device.dtype != "bfloat16" or self.device.batch_invariant:
            return 0
        layer = self.layers[0]
        shapes = [weight.packed.shape for weight in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        return most_few_rows(sum(2 * int(np.prod(shape)) for shape in shapes), max(shape[1] for shape in shapes))

    def forward_few_rows(self, rows: BatchRows, kv_cache: list[tuple[paddle.Tensor, paddle.Tensor]]) -> paddle.Tensor:
        """A step of at most ``max_few_rows`` decoding rows on a GPU: five kernels a layer, each started while the one
        before it runs."""
        heads, eps = (self.config.num_heads, self.config.num_kv_heads), self.config.rms_norm_eps
        residual = ops.embedding(self.embed.packed, rows.ids, self.config.vocab_size)
        where = (rows.positions, rows.slots, rows.block_tables)
        for layer, cache in zip(self.layers, kv_cache, strict=True):
            qkv = decode.skinny_linear(residual, layer.qkv.packed, layer.qkv.bias, layer.input_norm, eps)
            if layer.q_norm is not None:
                ops.qk_norm(qkv, layer.q_norm, layer.k_norm, *heads, eps)
            attended = decode.decode_attention(qkv, self.cos_sin, *where, *cache, *heads, self.scale)
            decode.add_skinny_linear(attended, layer.o.packed, residual, layer.o.bias)
            gated = decode.skinny_linear(
                residual, layer.gate_up.packed, layer.gate_up.bias, layer.post_attention_norm, eps, swiglu=True
            )
            decode.add_skinny_linear(gated, layer.down.packed, residual, layer.down.bias)
        return ops.rms_norm(residual, self.final_norm, eps)

    def forward_op_by_op(self, rows: BatchRows, kv_cache: list[tuple[paddle.Tensor, paddle.Tensor]]) -> paddle.Tensor:
        """The plain twin of the fused blocks: one op after the other, and on the CPU the same bits. On a GPU the way of prompts
        and of many rows; where all rows decode, attention takes rotary embedding and cache write along."""
        heads, eps = (self.config.num_heads, self.config.num_kv_heads), self.config.rms_norm_eps
        residual = ops.embedding(self.embed.packed, rows.ids, self.config.vocab_size)
        hidden = ops.rms_norm(residual, self.layers[0].input_norm, eps)
        for layer, (k_cache, v_cache), next_norm in zip(self.layers, kv_cache, self._next_norms(), strict=True):
            where = (rows.positions, rows.slots)
            qkv = layer.qkv(hidden)
            if layer.q_norm is not None:
                ops.qk_norm(qkv, layer.q_norm, layer.k_norm, *heads, eps)
            if self.device.is_gpu and rows.max_rows_per_slot == 1:
                attended = decode.decode_attention(
                    qkv, self.cos_sin, *where, rows.block_tables, k_cache, v_cache, *heads, self.scale,
                    self.device.batch_invariant,
                )  # fmt: skip
            else:
                ops.rotary_kv_write(qkv, self.cos_sin, *where, rows.block_tables, k_cache, v_cache, *heads)
                attended = ops.paged_attention(
                    qkv, k_cache, v_cache, rows.block_tables, *where, *heads, self.scale, rows.cu_seqlens_q,
                    rows.max_rows_per_slot, self.device.batch_invariant,
                )  # fmt: skip
            hidden = ops.add_rms_norm(layer.o(attended), residual, layer.post_attention_norm, eps)
            hidden = ops.add_rms_norm(layer.down(ops.swiglu(layer.gate_up(hidden))), residual, next_norm, eps)
        return hidden

    def _next_norms(self) -> list[paddle.Tensor]:
        """The norm that follows each layer: the next layer's, and the final one."""
        return [*(layer.input_norm for layer in self.layers[1:]), self.final_norm]

    def compute_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Logits float32 [T, vocab_size]; give it every row for all-position logits, the last ones for sampling."""
        return self.lm_head(hidden, float32_output=self.device.is_gpu)


def _parameter(device: CpuDevice, attribute: str, arrays: list[np.ndarray]) -> Linear | paddle.Tensor:
    if attribute.endswith("norm"):
        return device.tensor(arrays[0])
    weights = [array for array in arrays if array.ndim == 2]
    biases = [array for array in arrays if array.ndim == 1]
    return Linear(device, np.concatenate(weights), np.concatenate(biases) if biases else None)
