"""Which tensors a model has: Hugging Face names and shapes, and what GGUF files call them."""

from __future__ import annotations

import numpy as np

from actors.models.config import ModelConfig
from actors.models.registry import FAMILIES

_GGUF_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return {Hugging Face name: shape} of every tensor, in the order in which a forward pass needs them.

    Linear weights are [out, in]. A model with tied embeddings has no lm_head.weight.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        if config.norms == "before":
            tensors[prefix + "input_layernorm.weight"] = (hidden,)
        for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            tensors[f"{prefix}self_attn.{name}.weight"] = (outputs, hidden)
            if config.attention_bias:
                tensors[f"{prefix}self_attn.{name}.bias"] = (outputs,)
        if config.qk_norm:
            tensors[prefix + "self_attn.q_norm.weight"] = (
                queries if config.qk_norm_over_projection else config.head_dim,
            )
            tensors[prefix + "self_attn.k_norm.weight"] = (keys if config.qk_norm_over_projection else config.head_dim,)
        tensors[prefix + "self_attn.o_proj.weight"] = (hidden, queries)
        if config.attention_out_bias:
            tensors[prefix + "self_attn.o_proj.bias"] = (hidden,)
        tensors[prefix + "post_attention_layernorm.weight"] = (hidden,)
        for name, shape in (
            ("gate_proj", (inner, hidden)),
            ("up_proj", (inner, hidden)),
            ("down_proj", (hidden, inner)),
        ):
            tensors[f"{prefix}mlp.{name}.weight"] = shape
            if config.mlp_bias:
                tensors[f"{prefix}mlp.{name}.bias"] = shape[:1]
        if config.norms == "behind":
            tensors[prefix + "post_feedforward_layernorm.weight"] = (hidden,)
    tensors["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, hidden)
    return tensors


def gguf_name(name: str, config: ModelConfig) -> str:
    """Return what GGUF files of this architecture call the tensor with this Hugging Face name."""
    stem, kind = name.rsplit(".", 1)
    if stem in _GGUF_TOP:
        return f"{_GGUF_TOP[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{FAMILIES[config.architecture].layer_names[part]}.{kind}"


def folded_factor(name: str, config: ModelConfig) -> float:
    """Return the factor on a stored tensor by which the forward pass needs no multipliers of its own.

    The residual stream is kept divided by embedding_multiplier, so that embeddings, and a head tied to them, stay as they are.
    """
    if name == "model.norm.weight":
        return 1.0 / config.logits_scaling
    if name.rsplit(".", 1)[0].endswith(("self_attn.o_proj", "mlp.down_proj")):
        return config.residual_multiplier / config.embedding_multiplier
    return 1.0


def to_half_rotation(tensor: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of a q or k weight (or bias) from pairs (0,1), (2,3), ... to pairs (0,d/2), (1,d/2+1), ... per head.

    Attention scores do not change, because q and k are reordered alike.
    """
    rest = tensor.shape[1:]
    return tensor.reshape(num_heads, -1, 2, *rest).swapaxes(1, 2).reshape(tensor.shape)


def rotated_heads(name: str, config: ModelConfig) -> int:
    """Return the number of heads in a tensor whose rows are rotated (q and k projections), 0 for all others."""
    part = name.rsplit(".", 1)[0]
    if part.endswith("self_attn.q_proj"):
        return config.num_heads
    return config.num_kv_heads if part.endswith("self_attn.k_proj") else 0
