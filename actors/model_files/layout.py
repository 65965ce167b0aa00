"""Which tensors a model has: Hugging Face names and shapes, and what GGUF files call them."""

from __future__ import annotations

import numpy as np

from actors.models.config import ModelConfig

_GGUF_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
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
        tensors[prefix + "input_layernorm.weight"] = (hidden,)
        for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            tensors[f"{prefix}self_attn.{name}.weight"] = (outputs, hidden)
            if config.attention_bias:
                tensors[f"{prefix}self_attn.{name}.bias"] = (outputs,)
        if config.qk_norm:
            tensors[prefix + "self_attn.q_norm.weight"] = (config.head_dim,)
            tensors[prefix + "self_attn.k_norm.weight"] = (config.head_dim,)
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
    tensors["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, hidden)
    return tensors


def gguf_name(name: str) -> str:
    """Return what GGUF files call the tensor with this Hugging Face name."""
    stem, kind = name.rsplit(".", 1)
    if stem in _GGUF_TOP:
        return f"{_GGUF_TOP[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_GGUF_LAYER[part]}.{kind}"


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
