"""Names of settings as a person types them: with dashes, by the names that vLLM has for them, or slightly wrong."""

from __future__ import annotations

import difflib
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from cluster.config import LLMConfig
from cluster.errors import BiremeError

OTHER_WAYS = "name a file that holds them in api_keys_file, or set BIREME_API_KEY where Ray is started"
_KEYS_ELSEWHERE = f"every user of this machine can read a command line; {OTHER_WAYS}"
# vLLM's names for what has another one here.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "served_model_name": "model_id",
        "num_gpu_blocks_override": "num_kv_blocks",
        "max_seq_len": "max_model_len",
        "data_parallel_size": "num_replicas",
    }
)
# Values that are called otherwise there, by our name of the setting.
_VALUES = {("dtype", "half"): "float16", ("dtype", "float"): "float32", ("generation_config", "vllm"): "none"}
# vLLM's settings that mean nothing here, and what to do instead. 1 of a parallel size is what there is.
_ONE = "an engine computes on one device; num_replicas says how many engines there are"
NOT_SUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "tensor_parallel_size": _ONE,
        "pipeline_parallel_size": _ONE,
        "quantization": "the nearest is a GGUF file as model, which says itself how its weights are stored",
        "kv_cache_dtype": "the nearest is dtype, the type of weights and KV cache",
        "kv_cache_memory_bytes": "the nearest is kv_cache_memory_gb, in GiB",
        "trust_remote_code": "code that comes with a model is never run; docs/models.md has the architectures",
        "enable_lora": "adapters are not supported; merge them into the model",
        "enable_chunked_prefill": "long prompts are always prefilled in chunks; max_num_batched_tokens is their size",
        "scheduling_policy": "the nearest is oldest_first_every; requests have the field priority",
        "async_scheduling": "the nearest is enable_overlap_schedule",
        "api_key": _KEYS_ELSEWHERE,
    }
)
# A setting of the command line alone: it goes into deployment_config.
NUM_REPLICAS = "num_replicas"


def split_settings(items: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """What was typed, as words that are no settings, and settings under our names.

    Args:
        items: words, ``name=value``, ``--name=value``, ``--name value``; ``--switch`` and ``--no-switch`` of what is on or off.

    Raises:
        BiremeError: as ``setting``, or a value is missing.
    """
    words: list[str] = []
    settings: dict[str, str] = {}
    rest = deque(items)
    while rest:
        item = rest.popleft()
        name, equals, value = item.partition("=")
        if not item.startswith("--"):
            # A path may have the sign, too.
            if not equals or (not words and os.path.exists(item)):
                words.append(item)
                continue
        elif not equals:
            name, value = _switched(_plain(name))
            if not value:
                setting(item, "")  # an unknown one is said to be so, whatever follows
                if not rest or rest[0].startswith("--"):
                    raise BiremeError(f"{item} needs a value")
                name, value = item, rest.popleft()
        ours, value = setting(name, value)
        if ours:
            settings[ours] = value
    return words, settings


def _switched(name: str) -> tuple[str, str]:
    """A switch and its value; the name and nothing if it is none."""
    for switch, value in ((name, "true"), (name.removeprefix("no_"), "false")):
        if switch in LLMConfig.model_fields and LLMConfig.model_fields[switch].annotation is bool:
            return switch, value
    return name, ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def known_names() -> list[str]:
    """Every setting that a command line may name."""
    return sorted({*LLMConfig.model_fields, NUM_REPLICAS} - {"api_keys"})


def nearest(name: str, candidates: Iterable[str]) -> str:
    """``; did you mean X?`` or nothing."""
    found = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def setting(name: str, value: str) -> tuple[str, str]:
    """Our name and value of a setting; no name if it says what is so anyway.

    Raises:
        BiremeError: it is not supported; one sentence that says what is.
    """
    plain = _plain(name)
    ours = ALIASES.get(plain, plain)
    if ours.endswith("parallel_size") and value in ("1", "") and ours in NOT_SUPPORTED:
        return "", ""
    if ours == "api_keys":
        raise BiremeError(f"api_keys: {_KEYS_ELSEWHERE}", "api_keys")
    if ours in NOT_SUPPORTED:
        raise BiremeError(f"{name} is not supported: {NOT_SUPPORTED[ours]}", ours)
    if ours not in known_names():
        raise BiremeError(f"unknown setting {name}{nearest(ours, [*known_names(), *ALIASES])}", ours)
    return ours, _VALUES.get((ours, value), value)
