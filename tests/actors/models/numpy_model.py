"""The forward pass of every supported architecture in plain NumPy: what configuration, weights and rope table must add up to."""

from __future__ import annotations

import numpy as np

from actors.models.config import ModelConfig


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def forward(config: ModelConfig, weights: dict[str, np.ndarray], token_ids: np.ndarray) -> np.ndarray:
    """Return logits [tokens, vocabulary] of one sequence, in the weights' precision."""
    tokens, dim = len(token_ids), config.head_dim
    table = config.rope_table(tokens)
    cos, sin = table[:, None, : dim // 2], table[:, None, dim // 2 :]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def rotate(x: np.ndarray) -> np.ndarray:
        first, second = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return rms_norm(x, weights[name + ".weight"], config.stream_eps)

    before = config.norms == "before"
    hidden = weights["model.embed_tokens.weight"][token_ids]
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        attn = prefix + "self_attn."
        x = norm(hidden, prefix + "input_layernorm") if before else hidden
        q, k = linear(x, attn + "q_proj"), linear(x, attn + "k_proj")
        if config.qk_norm_over_projection:
            q, k = norm(q, attn + "q_norm"), norm(k, attn + "k_norm")
        q, k = q.reshape(tokens, config.num_heads, dim), k.reshape(tokens, config.num_kv_heads, dim)
        v = linear(x, attn + "v_proj").reshape(tokens, config.num_kv_heads, dim)
        if config.qk_norm and not config.qk_norm_over_projection:
            q = rms_norm(q, weights[attn + "q_norm.weight"], config.rms_norm_eps)
            k = rms_norm(k, weights[attn + "k_norm.weight"], config.rms_norm_eps)
        group = config.num_heads // config.num_kv_heads
        q, k, v = rotate(q), np.repeat(rotate(k), group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(config.score_scale)
        scores = np.where(np.tril(np.ones((tokens, tokens), bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", scores, v).reshape(tokens, -1)
        added = linear(mixed, attn + "o_proj")
        added = added if before else norm(added, prefix + "post_attention_layernorm")
        hidden = hidden + added
        x = norm(hidden, prefix + "post_attention_layernorm") if before else hidden
        gate = linear(x, prefix + "mlp.gate_proj")
        added = linear(gate / (1 + np.exp(-gate)) * linear(x, prefix + "mlp.up_proj"), prefix + "mlp.down_proj")
        added = added if before else norm(added, prefix + "post_feedforward_layernorm")
        hidden = hidden + added
    hidden = norm(hidden, "model.norm")
    return hidden @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T
