"""What a model's files say and nothing reads: listed in the log, and refused where it would change the result."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cluster.errors import ModelLoadError

logger = logging.getLogger("bireme.model_files")

_LISTED = 12


class ReadKeys(Mapping[str, Any]):
    """A mapping that remembers which of its keys were asked for."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    @property
    def unread(self) -> dict[str, Any]:
        return {key: value for key, value in self._content.items() if key not in self._read}


# What else than null a key may be without a reader; every other key what counts as off: false, 0, empty.
_NEUTRAL: dict[str, Collection[Any]] = {
    "act_fn": ("silu", "swish", "swiglu"),
    "activation": ("silu", "swish", "swiglu"),
    "activation_function": ("silu", "swish"),
    "compression_ratio": (1,),
    "hidden_activation": ("silu", "swish"),
    "is_causal": (True,),
    "norm_type": ("rmsnorm", "RMSNorm", "rms_norm"),
    "normalization": ("rmsnorm", "RMSNorm"),
    "position_embedding_type": ("rope", "rotary"),
    "use_rope": (True,),
    "use_rmsnorm": (True,),
    "attention.causal": (True,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1, -1),
}
# Of config.json.
_CHANGES_JSON = re.compile(
    r"""activation_function | hidden_activation | is_causal | normalization | use_rmsnorm | compression_ratio
    | .*_multiplier | .*softcap(ping)? | query_pre_attn_scalar | logits?_scal(e|ing) | scale_(emb|depth) | dim_model_base
    | embedding_scale | normalize_embedding | scale_embedding | clip_qkv | attn_temperature_tuning | use_sinks | attention_sinks?
    | (use_)?qk_(layer_?)?norm | use_alibi | alibi | (use_)?parallel_(residual|attn) | no_rope_layers | no_rope_layer_interval
    | rotary_(pct|dim|percent) | rope_(pct|percent|ratio|dim|3d|local_base_freq) | add_tail_layers | add_cross_attention
    | (num|n)_(local_|routed_|shared_)?experts | moe_num_experts | first_k_dense_replace | layer_norm_type | kv_lora_rank
    | act_fn | activation | norm_type | position_embedding_type | use_rope | rope_interleaved? | zero_centered_gamma
    | dual_chunk_attention.* | sliding_window_(size|pattern) | scale_attn.* | scale_qk.*
    | (attn|attention|embed|embedding|residual|logit|query|key)s?_scal(e|ing)(_.*)?
    | q_lora_rank | attention_(chunk_size|window_size) | window_size | compression_config | cross_layer_sharing""",
    re.VERBOSE,
)
# Of GGUF metadata, below the architecture.
_CHANGES_GGUF = re.compile(
    r"""attention\..* | rope\..* | .*_scale | .*softcapping | expert_.* | use_parallel_residual | swin_norm | pooling_type
    | nextn_predict_layers | leading_dense_block_count | interleave_moe_layer_step | decoder_.* | ssm\..* | n_deepstack_layers
    | hidden_act(ivation)? | activation""",
    re.VERBOSE,
)
_HARMLESS_GGUF = re.compile(
    r"attention\.layer_norm_epsilon | rope\.scaling\.finetuned | rope\.scaling\.yarn_beta_.* | tensor_data_layout",
    re.VERBOSE,
)
# Training, saving and decoding; what transformers writes into every file.
_HARMLESS_JSON = re.compile(
    r"""_.* | architectures | auto_map | .*_token_id | .*dropout.* | initializer_.* | transformers_version | paddlenlp_version
    | use_cache | max_window_layers | torch_dtype | dtype | model_type | id2label | label2id | fuse_.* | use_fast_ln
    | use_flash_attention | output_(attentions|hidden_states) | return_dict | chunk_size_feed_forward | problem_type
    | model_name | max_sequence_length | moe_.*_lambda | moe_.*_loss | global_aux_loss | use_recompute | num_labels""",
    re.VERBOSE,
)


def report_unread_json(raw: ReadKeys, where: object) -> None:
    """Log the keys of a config.json that nothing read.

    Raises:
        ModelLoadError: one of them would change what the model computes.
    """
    _refuse({key: key for key in raw.unread if _CHANGES_JSON.fullmatch(key)}, raw.unread, where)
    _log(where, "keys", [key for key in raw.unread if not _HARMLESS_JSON.fullmatch(key)])


def report_unread_metadata(metadata: ReadKeys, arch: str, where: object) -> None:
    """Log the keys of a GGUF file's architecture that nothing read; the tokenizer's are not looked at.

    Raises:
        ModelLoadError: one of them would change what the model computes.
    """
    below = {key: key.removeprefix(f"{arch}.") for key in metadata.unread if key.startswith(f"{arch}.")}
    unread = {key: name for key, name in below.items() if not _HARMLESS_GGUF.fullmatch(name)}
    _refuse({key: name for key, name in unread.items() if _CHANGES_GGUF.fullmatch(name)}, metadata.unread, where)
    _log(where, "keys", sorted(unread))


def _refuse(names: dict[str, str], values: dict[str, Any], where: object) -> None:
    for key, name in sorted(names.items()):
        value = values[key]
        if (value is not None and value not in _NEUTRAL[name]) if name in _NEUTRAL else value:
            raise ModelLoadError(
                f"{where}: {key} is {str(value)[:80]}, which changes what the model computes and is not supported.",
                "model",
            )


# Tables that follow from the configuration, and heads that draft tokens or rank texts.
_HARMLESS_TENSORS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|rotary_emb\.(cos|sin)_cached|position_ids|masked_bias)")
_BESIDE = re.compile(r"(model\.|ernie\.)?mtp.*|(score|classifier|v_head|visual|vision_tower|audio_tower)\..*")


def report_unread_tensors(unread: Collection[str], tied: bool, where: object) -> None:
    """Log tensors that the forward pass does not use.

    Args:
        tied: a stored output head is not the model's.
    Raises:
        ModelLoadError: one of them is a part of the model: a bias, a norm, a scale, a layer.
    """
    beside = [
        n for n in unread if _HARMLESS_TENSORS.fullmatch(n) or _BESIDE.fullmatch(n) or (tied and n == "lm_head.weight")
    ]
    parts = sorted(set(unread) - set(beside))
    if parts:
        more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
        raise ModelLoadError(
            f"{where}: tensor {', '.join(parts[:3])}{more}: the configuration has no use for it, so the model would compute "
            "something else than its files say; use the configuration that belongs to the weights, if it is of a supported "
            "architecture.",
            "model",
        )
    _log(where, "tensors", sorted(beside))


def _log(where: object, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        logger.info("%s: %s that nothing reads: %s%s", where, what, ", ".join(names[:_LISTED]), more)
