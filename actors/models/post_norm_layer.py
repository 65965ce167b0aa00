"""Post-norm decoder layer: attention and feed-forward read the residual stream, and the norm of their results is added to it."""

from __future__ import annotations

from typing import ClassVar

import paddle

from actors.layers.attention import LayerCache
from actors.layers.batch_rows import BatchRows
from actors.layers.norm import RMSNorm
from actors.models.layer import Layer


class PostNormLayer(Layer):
    """One layer of OLMo 2."""

    norm_names: ClassVar[dict[str, str]] = {
        "post_attention_norm": "post_attention_layernorm",
        "post_feedforward_norm": "post_feedforward_layernorm",
    }
    post_attention_norm: RMSNorm
    post_feedforward_norm: RMSNorm

    def op_by_op(
        self,
        hidden: paddle.Tensor,
        residual: paddle.Tensor,
        next_norm: RMSNorm | None,
        rows: BatchRows,
        cache: LayerCache,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        attention = self.attention
        attended = attention.o(attention.mix(attention.qkv(hidden), rows, cache))
        self.post_attention_norm.add_to(residual, attended)
        self.post_feedforward_norm.add_to(residual, self.mlp(residual))
        return (residual if next_norm is None else next_norm(residual)), residual
