"""Pre-norm decoder layer: attention and feed-forward each read the norm of the residual stream and add to it."""

from __future__ import annotations

from typing import ClassVar

import paddle

from actors.layers.attention import LayerCache
from actors.layers.batch_rows import BatchRows
from actors.layers.norm import HeadNorm, RMSNorm
from actors.models.layer import Layer
from gpu_ops.fused_layers import FusedLayer

_FOLLOWED = "what follows a pre-norm layer begins with a norm"


class PreNormLayer(Layer):
    """One layer of Llama and its relatives."""

    norm_names: ClassVar[dict[str, str]] = {
        "input_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
    }
    input_norm: RMSNorm
    post_attention_norm: RMSNorm

    @property
    def can_fuse(self) -> bool:
        """Known to the fused op are its kinds of weight, and norms that share one eps."""
        norm = self.attention.qk_norm
        return all(linear.weight.fused_block_weight is not None for linear in self.linears) and (
            norm is None or (isinstance(norm, HeadNorm) and norm.q.eps == self.input_norm.eps)
        )

    @property
    def has_small_batch(self) -> bool:
        return all(linear.weight.has_small_batch for linear in self.linears)

    def fused(self, next_norm: RMSNorm | None) -> FusedLayer:
        assert next_norm is not None, _FOLLOWED
        attention, mlp, norm = self.attention, self.mlp, self.attention.qk_norm
        tensors = [linear.weight.fused_block_weight for linear in self.linears]
        qkv, o, gate_up, down = (tensor for tensor in tensors if tensor is not None)
        return FusedLayer(
            qkv,
            o,
            gate_up,
            down,
            self.post_attention_norm.weight,
            next_norm.weight,
            qkv_bias=attention.qkv.bias,
            q_norm=norm and norm.q.weight,
            k_norm=norm and norm.k.weight,
            o_bias=attention.o.bias,
            gate_up_bias=mlp.gate_up.bias,
            down_bias=mlp.down.bias,
        )

    def op_by_op(
        self,
        hidden: paddle.Tensor,
        residual: paddle.Tensor,
        next_norm: RMSNorm | None,
        rows: BatchRows,
        cache: LayerCache,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        assert next_norm is not None, _FOLLOWED
        attention = self.attention
        attended = attention.o(attention.mix(attention.qkv(hidden), rows, cache))
        hidden = self.post_attention_norm.after_add(attended, residual)
        return next_norm.after_add(self.mlp(hidden), residual), residual

    def small_batch(self, residual: paddle.Tensor, rows: BatchRows, cache: LayerCache) -> None:
        """Five kernels, each started while the one before it runs."""
        attention, mlp = self.attention, self.mlp
        qkv = attention.qkv.small_batch(residual, self.input_norm)
        attention.o.add_small_batch(attention.mix(qkv, rows, cache), residual)
        gated = mlp.gate_small_batch(residual, self.post_attention_norm)
        mlp.down.add_small_batch(gated, residual)
