"""Registry of model families: the one place that names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.models.family import Family
from cluster.errors import ModelLoadError

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "llama", "LlamaForCausalLM",
            attention_bias="attention_bias", attention_out_bias="attention_bias", mlp_bias="mlp_bias",
            gguf_interleaved=True,
        ),
        # Its published code has no biases, whatever its configuration says; its GGUF files say llama.
        Family("mistral", "MistralForCausalLM", in_gguf=False, sliding_window="always"),
        Family("qwen2", "Qwen2ForCausalLM", attention_bias=True, sliding_window="if used"),
        Family(
            "qwen3", "Qwen3ForCausalLM",
            attention_bias="attention_bias", attention_out_bias="attention_bias", head_dim=128, qk_norm="head",
            sliding_window="if used",
        ),
        Family(
            "ernie4_5", "Ernie4_5ForCausalLM", ("Ernie4_5_ForCausalLM",),
            attention_bias="use_bias", attention_out_bias="use_bias", mlp_bias="use_bias", head_dim=128,
            rope_theta=500_000.0, rms_norm_eps=1e-5, tie_word_embeddings=True, interleaved=True, gguf_interleaved=True,
        ),
        Family(
            "granite", "GraniteForCausalLM",
            attention_bias="attention_bias", attention_out_bias="attention_bias", mlp_bias="mlp_bias",
            gguf_interleaved=True,
            multipliers={
                "embedding_multiplier": ("embedding_multiplier", 1.0, "embedding_scale"),
                "attention_scale": ("attention_multiplier", 1.0, "attention.scale"),
                "residual_multiplier": ("residual_multiplier", 1.0, "residual_scale"),
                "logits_scaling": ("logits_scaling", 1.0, "logit_scale"),
            },
        ),
        # A window in files that say olmo2 is OLMo 3, which scales rotary embedding in some of its layers alone.
        Family(
            "olmo2", "Olmo2ForCausalLM",
            attention_bias="attention_bias", attention_out_bias="attention_bias", rms_norm_eps=1e-5,
            qk_norm="projection", norms="behind", refuses_window=True,
        ),
    )
}  # fmt: skip


def family_of_json(raw: Mapping[str, Any], where: object) -> Family:
    """The family of a config.json: by model_type, or by the class in architectures where that says nothing.

    Raises:
        ModelLoadError: no such family; the message lists those there are.
    """
    classes = raw.get("architectures") or [None]
    name = raw.get("model_type") or classes[0]
    if name not in FAMILIES:
        for family in FAMILIES.values():
            # Paddle's own files of ERNIE 4.5 may say ernie, which has been another model before.
            if classes[0] in family.other_classes or (classes[0] == family.hf_class and raw.get("model_type") is None):
                return family
        raise _unknown(name, where)
    return FAMILIES[name]


def family_of_gguf(architecture: str, where: object) -> Family:
    """The family of a GGUF file's general.architecture.

    Raises:
        ModelLoadError: no such family; the message lists those there are.
    """
    family = FAMILIES.get(architecture)
    if family is None or not family.in_gguf:
        raise _unknown(architecture, where)
    return family


def _unknown(name: object, where: object) -> ModelLoadError:
    return ModelLoadError(
        f"{where}: architecture {name!r} is not supported; supported: {', '.join(FAMILIES)}.", "model"
    )
