"""ModelConfig from GGUF metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.layers.rope import RopeScaling
from actors.model_files.gguf_file import GGUFFile, read_gguf
from actors.model_files.gguf_tensors import read_tensor
from actors.model_files.rope_scaling import normalise_rope_scaling
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

    def get(key: str, default: Any = None) -> Any:
        value = file.metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise ModelLoadError(f"{path} lacks the metadata key {arch}.{key}: convert or download it again.", "model")
        return value

    if file.metadata.get("split.count", 1) > 1:
        raise ModelLoadError(
            f"{path} is one of {file.metadata['split.count']} parts: join them first (llama-gguf-split --merge).",
            "model",
        )
    if file.metadata.get(f"{arch}.expert_count"):
        raise ModelLoadError(
            f"{path} is a mixture of experts, which is not supported; supported: dense models.", "model"
        )
    for key in family.refused_gguf_keys:
        if f"{arch}.{key}" in file.metadata:
            raise ModelLoadError(f"{path} has {arch}.{key}, a variant of {arch} that is not supported.", "model")
    hidden, heads = get("embedding_length"), get("attention.head_count")
    if not isinstance(heads, int) or heads < 1:
        raise ModelLoadError(
            f"{path}: {arch}.attention.head_count is {heads!r}; supported: one positive number.", "model"
        )
    head_dim = file.metadata.get(f"{arch}.attention.key_length", hidden // heads)
    if get("rope.dimension_count", head_dim) != head_dim:
        raise ModelLoadError(
            f"{path}: rope.dimension_count differs from head_dim {head_dim}; supported: full rotation.", "model"
        )
    scaling, max_positions = _rope_scaling(file, arch, get("context_length"), head_dim)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelLoadError(f"{path} has no tensor token_embd.weight: it is damaged or no language model.", "model")
    # Float32 next to decimal numbers, as eps.
    multipliers: dict[str, Any] = {name: float(f"{get(key):.6g}") for name, (_, _, key) in family.multipliers.items()}
    return ModelConfig(
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


def _rope_scaling(file: GGUFFile, arch: str, context: int, head_dim: int) -> tuple[RopeScaling, int]:
    divisors = file.tensors.get("rope_freqs.weight")
    if divisors is not None:
        values = read_tensor(file, divisors)
        if values.shape != (head_dim // 2,):
            raise ModelLoadError(
                f"{file.path}: tensor rope_freqs.weight has shape {list(values.shape)}, expected [{head_dim // 2}].",
                "model",
            )
        return RopeScaling("divisors", divisors=tuple(map(float, values))), context
    prefix = f"{arch}.rope.scaling."
    kind = file.metadata.get(prefix + "type", "none")
    raw = {
        "rope_type": "default" if kind == "none" else kind,
        "factor": file.metadata.get(prefix + "factor"),
        "original_max_position_embeddings": file.metadata.get(prefix + "original_context_length"),
        "attention_factor": file.metadata.get(prefix + "attn_factor"),
        "beta_fast": file.metadata.get(prefix + "yarn_beta_fast"),
        "beta_slow": file.metadata.get(prefix + "yarn_beta_slow"),
    }
    # The context length of a converted file counts scaling in already.
    return normalise_rope_scaling(raw, context, file.path)[0], context
