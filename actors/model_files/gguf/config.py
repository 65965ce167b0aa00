"""ModelConfig from GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.layers.rope import RopeScaling
from actors.model_files.gguf.file import GGUFFile, read_gguf
from actors.model_files.gguf.tensors import read_tensor
from actors.model_files.rope_scaling import normalise_rope_scaling
from actors.model_files.unread import ReadKeys, report_unread_metadata
from actors.models.config import ModelConfig
from actors.models.registry import family_of_gguf
from cluster.errors import ModelLoadError

_DTYPES = {0: "float32", 1: "float16", 30: "bfloat16"}


def config_from_gguf(path: Path) -> ModelConfig:
    """Read hyperparameters, but for the ids that end a generation, from the header; tied embeddings and biases follow from
    which tensors are there.

    Raises:
        ModelLoadError: unknown architecture, missing keys, or a variant that is not supported.
    """
    file = read_gguf(path)
    arch = file.architecture
    family = family_of_gguf(arch, path)
    metadata = ReadKeys(file.metadata)

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise ModelLoadError(f"{path} lacks the metadata key {arch}.{key}: convert or download it again.", "model")
        return value

    if metadata.get(f"{arch}.expert_count"):
        raise ModelLoadError(
            f"{path} is a mixture of experts, which is not supported; supported: dense models.", "model"
        )
    hidden, heads = get("embedding_length"), get("attention.head_count")
    if not isinstance(heads, int) or heads < 1:
        raise ModelLoadError(
            f"{path}: {arch}.attention.head_count is {heads!r}; supported: one positive number.", "model"
        )
    head_dim = get("attention.key_length", hidden // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if get(key, head_dim) != head_dim:
            raise ModelLoadError(
                f"{path}: {arch}.{key} differs from head_dim {head_dim}; supported: full rotation, and keys and values of one "
                "size.",
                "model",
            )
    scaling, max_positions = _rope_scaling(file, metadata, arch, get("context_length"), head_dim)
    window = get("attention.sliding_window", 0)
    if window and family.refuses_window:
        raise ModelLoadError(
            f"{path} has {arch}.attention.sliding_window, a variant of {arch} that is not supported.", "model"
        )
    if window:
        max_positions = min(max_positions, window)  # within it, attention is full attention
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelLoadError(f"{path} has no tensor token_embd.weight: it is damaged or no language model.", "model")
    # Float32 next to decimal numbers, as eps.
    multipliers: dict[str, Any] = {name: float(f"{get(key):.6g}") for name, (_, _, key) in family.multipliers.items()}
    config = ModelConfig(
        architecture=arch,
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length"),
        num_layers=get("block_count"),
        num_heads=heads,
        num_kv_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=embedding.shape[0],
        max_position_embeddings=max_positions,
        # Converters write the float32 next to 1e-05; the model was made with the decimal number.
        rms_norm_eps=float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"),
        rope_theta=float(get("rope.freq_base", 10_000.0)),
        rope_scaling=scaling,
        tie_word_embeddings="output.weight" not in file.tensors,
        rope_interleaved=family.gguf_interleaved,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        attention_out_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        qk_norm=family.qk_norm == "projection" or "blk.0.attn_q_norm.weight" in file.tensors,
        qk_norm_over_projection=family.qk_norm == "projection",
        norms=family.norms,
        dtype=_DTYPES.get(embedding.type_id, "float32"),
        **multipliers,
    )
    get("vocab_size", 0)  # the embedding has it
    report_unread_metadata(metadata, arch, path)
    return config


def _rope_scaling(
    file: GGUFFile, metadata: Mapping[str, Any], arch: str, context: int, head_dim: int
) -> tuple[RopeScaling, int]:
    prefix = f"{arch}.rope.scaling."
    kind, factor = metadata.get(prefix + "type"), metadata.get(prefix + "factor")
    legacy = metadata.get(f"{arch}.rope.scale_linear")  # of files from before there were types
    if legacy not in (None, 0, 1):
        if kind not in (None, "linear") or factor not in (None, legacy):
            raise ModelLoadError(
                f"{file.path}: {arch}.rope.scale_linear is {legacy} beside {prefix}type {kind!r} and factor {factor}: "
                "convert or download it again.",
                "model",
            )
        kind, factor = "linear", legacy
    raw = {
        "rope_type": {"none": "default"}.get(kind, kind) if isinstance(kind, str) else kind,
        # A converter may write the factor 0 or 1 for none.
        "factor": factor or None,
        "original_max_position_embeddings": metadata.get(prefix + "original_context_length"),
        "beta_fast": metadata.get(prefix + "yarn_beta_fast"),
        "beta_slow": metadata.get(prefix + "yarn_beta_slow"),
    }
    # The context length of a converted file counts scaling in already.
    scaling = normalise_rope_scaling(raw, context, file.path)[0]
    attention = metadata.get(prefix + "attn_factor")
    if attention not in (None, 1):
        if scaling.kind != "yarn":
            raise ModelLoadError(
                f"{file.path}: {prefix}attn_factor is {attention}; supported with type {kind!r}: 1.", "model"
            )
        scaling = replace(scaling, attention_factor=scaling.attention_factor * attention)
    divisors = file.tensors.get("rope_freqs.weight")
    if divisors is None:
        return scaling, context
    if scaling.kind != "none":
        raise ModelLoadError(
            f"{file.path} has {prefix}type {kind!r} and a tensor rope_freqs.weight; supported: one of them.", "model"
        )
    values = read_tensor(divisors)
    if values.shape != (head_dim // 2,):
        raise ModelLoadError(
            f"{file.path}: tensor rope_freqs.weight has shape {list(values.shape)}, expected [{head_dim // 2}].",
            "model",
        )
    return RopeScaling("divisors", divisors=tuple(map(float, values))), context
