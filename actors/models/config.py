"""Hyperparameters of a model in one form, whatever file they come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from actors.layers.rope import RopeScaling, rope_table
from cluster.errors import ModelLoadError
from cluster.sampling_params import MAX_EOS_TOKEN_IDS

DTYPES = ("float32", "float16", "bfloat16")
# Far above any model: what exceeds it is a damaged file, which must not make the loader allocate or loop for ever.
LARGEST = {
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_layers": 2**12,
    "num_heads": 2**14,
    "num_kv_heads": 2**14,
    "head_dim": 2**14,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**31,
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A dense decoder: RMSNorm, rotary attention with grouped queries, SwiGLU.

    Attributes:
        architecture: name of its family in ``actors.models.registry``.
        head_dim: of queries, keys and values alike.
        max_position_embeddings: longest sequence for which full causal attention is what the model was made for; rope scaling
            is counted in, and a sliding window narrower than it lowers it.
        rope_interleaved: the stored q and k weights pair neighbouring dimensions; iter_weights turns them into half-rotation
            order, so the model itself never sees this.
        attention_bias, attention_out_bias, mlp_bias: biases on q/k/v, on the output projection, on gate/up/down.
        qk_norm: RMSNorm over each head of q and k before rotation; with qk_norm_over_projection over all heads together.
        norms: RMSNorm of what attention and feed-forward read, or of what they add to the residual stream.
        embedding_multiplier, residual_multiplier: factors on embeddings, and on what a layer adds to the residual stream.
            iter_weights folds them and logits_scaling into weights, so the model itself never sees them, but for stream_eps.
        attention_scale: factor on attention scores; None is head_dim ** -0.5.
        logits_scaling: logits are divided by it.
        eos_token_ids: sorted; every id that ends a generation by default, at most MAX_EOS_TOKEN_IDS.
        dtype: in which the weights were published.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    tie_word_embeddings: bool
    rope_interleaved: bool = False
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    qk_norm_over_projection: bool = False
    norms: Literal["before", "behind"] = "before"
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_scale: float | None = None
    logits_scaling: float = 1.0
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"

    def check(self, where: object) -> ModelConfig:
        """Return self, or raise ModelLoadError naming the first value that cannot be right."""
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
                raise ModelLoadError(
                    f"{where}: {name} is {value!r}, it must be an integer from 1 to {largest}.", "model"
                )
        if self.num_heads % self.num_kv_heads:
            raise ModelLoadError(
                f"{where}: num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads}).",
                "model",
            )
        if self.head_dim % 2:
            raise ModelLoadError(
                f"{where}: head_dim is {self.head_dim}, rotary embedding needs an even number.", "model"
            )
        if not self.rms_norm_eps > 0 or not self.rope_theta > 1:
            raise ModelLoadError(
                f"{where}: rms_norm_eps ({self.rms_norm_eps}) must be above 0 and rope_theta "
                f"({self.rope_theta}) above 1.",
                "model",
            )
        for name in ("embedding_multiplier", "residual_multiplier", "attention_scale", "logits_scaling"):
            factor = getattr(self, name)
            if factor is not None and not 0 < factor < math.inf:
                raise ModelLoadError(f"{where}: {name} is {factor}, it must be above 0 and finite.", "model")
        if self.norms == "behind" and (self.embedding_multiplier, self.residual_multiplier) != (1, 1):
            raise ModelLoadError(
                f"{where}: embedding_multiplier and residual_multiplier are {self.embedding_multiplier} and "
                f"{self.residual_multiplier}; supported with norms behind attention and feed-forward: 1.",
                "model",
            )
        outside = [token for token in self.eos_token_ids if not 0 <= token < self.vocab_size]
        if outside:
            raise ModelLoadError(
                f"{where}: eos_token_id {outside[0]} is not below vocab_size ({self.vocab_size}).", "model"
            )
        if len(self.eos_token_ids) > MAX_EOS_TOKEN_IDS:
            raise ModelLoadError(
                f"{where}: eos_token_id: {len(self.eos_token_ids)} tokens end a generation, of config.json, "
                f"generation_config.json and tokenizer together; supported: {MAX_EOS_TOKEN_IDS}.",
                "model",
            )
        return self

    @property
    def stream_eps(self) -> float:
        """eps of RMSNorm of the residual stream, which is kept divided by embedding_multiplier."""
        return self.rms_norm_eps / self.embedding_multiplier**2

    @property
    def score_scale(self) -> float:
        """Factor on attention scores."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def rope_table(self, max_len: int) -> np.ndarray:
        """Return float32 [max_len, head_dim]: cosines, then sines, of each position."""
        return rope_table(self.rope_theta, self.head_dim, self.rope_scaling, max_len)
