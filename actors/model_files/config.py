"""Hyperparameters of a model, read from config.json or GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from actors.model_files.end_tokens import eos_token_ids
from actors.model_files.json_file import read_json
from actors.model_files.rope_scaling import normalise_rope_scaling
from actors.model_files.source import ModelSource
from actors.model_files.unread import ReadKeys, report_unread_json
from actors.models.config import DTYPES, ModelConfig
from actors.models.family import Family
from actors.models.registry import family_of_json
from cluster.errors import ModelLoadError


def load_model_config(source: ModelSource) -> ModelConfig:
    """Read and check the configuration of ``source``.

    Raises:
        ModelLoadError: missing or damaged configuration, unknown architecture, or a feature that is not supported.
    """
    where = source.path if source.is_gguf else source.path / "config.json"
    try:
        if source.is_gguf:
            from actors.model_files.gguf.config import config_from_gguf

            config = config_from_gguf(source.path)
        else:
            config = config_from_json(read_json(where), where)
        return replace(config, eos_token_ids=eos_token_ids(source)).check(where)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelLoadError(
            f"{where} holds a value of the wrong type ({error}): use the file that belongs to the model.", "model"
        ) from error


def config_from_json(raw: Mapping[str, Any], where: object) -> ModelConfig:
    """Normalise a Hugging Face configuration, but for the ids that end a generation.

    Args:
        raw: content of config.json, of any age: rope settings are taken from rope_scaling, else rope_parameters; and rope_theta.
        where: for error messages.
    """
    raw = ReadKeys(raw)
    family = family_of_json(raw, where)
    _refuse_unsupported(raw, where)

    def required(name: str) -> Any:
        if raw.get(name) is None:
            raise ModelLoadError(f"{where} lacks {name}: use the config.json that belongs to the model.", "model")
        return raw[name]

    hidden, heads = required("hidden_size"), required("num_attention_heads")
    if not isinstance(heads, int) or heads < 1 or not isinstance(hidden, int):
        raise ModelLoadError(
            f"{where}: hidden_size ({hidden!r}) and num_attention_heads ({heads!r}) must be positive integers.", "model"
        )
    # A file of transformers 5 has rope_parameters; who adds rope_scaling to it wants that.
    parameters = raw.get("rope_parameters") or {}
    rope = raw.get("rope_scaling") or parameters
    if rope is not parameters:
        if rope.get("rope_type", rope.get("type")) is None:
            # It names no kind: an addition to what stands there.
            rope = {**parameters, **rope}
        elif parameters:
            # Overruled, and yet nothing that is not known here may stand there.
            normalise_rope_scaling(parameters, raw.get("max_position_embeddings", 2048), where)
    theta = rope.get("rope_theta") or raw.get("rope_theta") or parameters.get("rope_theta") or family.rope_theta
    max_positions = raw.get("max_position_embeddings", 2048)
    scaling, max_positions = normalise_rope_scaling(rope, max_positions, where)
    multipliers: dict[str, Any] = {
        name: float(raw.get(key, default)) for name, (key, default, _) in family.multipliers.items()
    }
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    config = ModelConfig(
        architecture=family.name,
        hidden_size=hidden,
        intermediate_size=required("intermediate_size"),
        num_layers=required("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or family.head_dim or hidden // heads,
        vocab_size=required("vocab_size"),
        max_position_embeddings=_within_window(raw, family, max_positions, where),
        rms_norm_eps=float(raw.get("rms_norm_eps") or family.rms_norm_eps),
        rope_theta=float(theta),
        rope_scaling=scaling,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", family.tie_word_embeddings)),
        rope_interleaved=family.interleaved,
        attention_bias=family.has(family.attention_bias, raw),
        attention_out_bias=family.has(family.attention_out_bias, raw),
        mlp_bias=family.has(family.mlp_bias, raw),
        qk_norm=family.qk_norm != "none",
        qk_norm_over_projection=family.qk_norm == "projection",
        norms=family.norms,
        dtype=dtype if dtype in DTYPES else "float32",
        **multipliers,
    )
    report_unread_json(raw, where)
    return config


def _refuse_unsupported(raw: Mapping[str, Any], where: object) -> None:
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise ModelLoadError(
            f"{where}: quantization_config ({method}) is not supported for safetensors: use the unquantised "
            "model or a GGUF file.",
            "model",
        )
    if raw.get("hidden_act") not in (None, "silu", "swish"):
        raise ModelLoadError(f"{where}: hidden_act is {raw['hidden_act']!r}; supported: silu.", "model")
    for place in (raw, raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}):
        if place.get("partial_rotary_factor") not in (None, 1):
            raise ModelLoadError(
                f"{where}: partial_rotary_factor is {place['partial_rotary_factor']}; supported: 1.", "model"
            )
    if raw.get("pretraining_tp", 1) not in (None, 0, 1):
        raise ModelLoadError(f"{where}: pretraining_tp is {raw['pretraining_tp']}; supported: 1.", "model")


def _within_window(raw: Mapping[str, Any], family: Family, max_positions: int, where: object) -> int:
    """Attention within the window is full attention, so a sequence that never outgrows it needs no window."""
    kinds = set(raw.get("layer_types") or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise ModelLoadError(
            f"{where}: layer_types has {', '.join(sorted(map(str, kinds)))}; supported: full_attention, and "
            "sliding_attention within its window.",
            "model",
        )
    window, is_used = raw.get("sliding_window"), raw.get("use_sliding_window")
    slides = "sliding_attention" in kinds
    if slides and not window:
        raise ModelLoadError(f"{where}: layer_types has sliding_attention, and sliding_window is {window!r}.", "model")
    is_on = {"always": True, "if used": is_used, "unless off": is_used is not False}[family.sliding_window]
    if window and (slides or is_on):
        if family.refuses_window:
            raise ModelLoadError(
                f"{where}: sliding_window is {window}, a variant of {family.name} that is not supported.", "model"
            )
        return min(max_positions, window)
    return max_positions
