"""Model family: what a published architecture reads from its files, calls its tensors, and computes differently from Llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Modules of a layer, below "model.layers.N.", to what GGUF files call them below "blk.N.".
PROJECTIONS = {
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
PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
POST_NORMS = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}


@dataclass(frozen=True, slots=True)
class Family:
    """One entry of the registry. The defaults are Llama's; only what a family does differently is written down.

    Attributes:
        name: ``model_type`` of config.json, and ``general.architecture`` of GGUF files.
        hf_class, other_classes: names in ``architectures`` of config.json.
        in_gguf: GGUF files name this family; those of others name the family that computes the same.
        attention_bias, attention_out_bias, mlp_bias: key of config.json that says whether q/k/v, the output projection or
            gate/up/down have biases, or the answer itself. In GGUF the tensors tell.
        head_dim, rope_theta, rms_norm_eps, tie_word_embeddings: what holds where config.json is silent; head_dim None is
            hidden_size / num_attention_heads.
        interleaved, gguf_interleaved: stored rows of q and k pair neighbouring dimensions, in safetensors and in GGUF.
        qk_norm: RMSNorm of q and k, over each head or over the whole projection.
        norms: before attention and feed-forward, or behind them.
        sliding_window: whether sliding_window of config.json holds always, if use_sliding_window says so, or unless it says no.
        refuses_window: a model with a window is another one.
        multipliers: field of ModelConfig to (key of config.json, its default, key of GGUF below the architecture).
    """

    name: str
    hf_class: str
    other_classes: tuple[str, ...] = ()
    in_gguf: bool = True
    attention_bias: str | bool = False
    attention_out_bias: str | bool = False
    mlp_bias: str | bool = False
    head_dim: int | None = None
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    interleaved: bool = False
    gguf_interleaved: bool = False
    qk_norm: Literal["none", "head", "projection"] = "none"
    norms: Literal["before", "behind"] = "before"
    sliding_window: Literal["always", "if used", "unless off"] = "unless off"
    refuses_window: bool = False
    multipliers: dict[str, tuple[str, float, str]] = field(default_factory=dict)

    def has(self, bias: str | bool, raw: Mapping[str, Any]) -> bool:
        """Whether config.json ``raw`` says that a bias is there, for one of the bias attributes."""
        return bool(raw.get(bias, False)) if isinstance(bias, str) else bias

    @property
    def layer_names(self) -> dict[str, str]:
        """Module of a layer to its name in GGUF files."""
        return PROJECTIONS | (PRE_NORMS if self.norms == "before" else POST_NORMS)
