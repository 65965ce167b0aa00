"""Small engines for tests: a random two-layer model, one process, no Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from actors.engine.engine import Engine
from actors.engine.loading import load_engine
from cluster.config import EngineConfig
from cluster.outputs import PlainTokens, StreamItem, TokenDelta
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from tests.actors.model_files.gguf_writer import METADATA, random_tensors, write_gguf

TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "torch_dtype": "float32",
}


# What makes the tiny model one of a family that the forward pass treats differently.
FAMILIES: dict[str, dict] = {
    "llama": {},
    "granite": {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.22,
        "logits_scaling": 0.5,
        "tie_word_embeddings": False,
    },
    "olmo2": {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"},
}
OTHER_FAMILIES = [family for family in FAMILIES if family != "llama"]


# A model that is computed from its file's quantised weights, in several formats.
QUANTISED = "quantised"
OTHER_MODELS = [*OTHER_FAMILIES, QUANTISED]


def write_quantised_model(folder: Path) -> Path:
    """A GGUF file of two layers: matmuls of one format and of several, and one matrix that stays dense."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden, inner, keys = (TINY_CONFIG[name] for name in ("hidden_size", "intermediate_size", "head_dim"))
    shapes = {"token_embd.weight": (TINY_CONFIG["vocab_size"], hidden), "output_norm.weight": (hidden,)}
    formats = {"token_embd.weight": "Q8_0"}
    parts = {
        "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (2 * keys, hidden),
        "attn_v": (2 * keys, hidden), "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }  # fmt: skip
    for layer, by_part in enumerate(
        (
            {"ffn_gate": "BF16", "attn_output": "F16"},
            {"attn_v": "Q8_0", "attn_q": "Q4_0", "attn_output": "F32", "ffn_up": "Q5_0", "ffn_down": "Q5_1"},
        )
    ):
        for part, shape in parts.items():
            shapes[f"blk.{layer}.{part}.weight"] = shape
            formats[f"blk.{layer}.{part}.weight"] = by_part.get(part, "Q4_1")
    metadata = METADATA | {"block_count": 2, "context_length": TINY_CONFIG["max_position_embeddings"]}
    tensors = {name: 0.2 * array if array.ndim > 1 else 1 + array / 4 for name, array in random_tensors(shapes).items()}
    return write_gguf(folder / "tiny.gguf", tensors, metadata=metadata, qtype=formats)


def write_tiny_model(folder: Path, family: str = "llama") -> Path:
    """A model that ``make_engine`` serves: a folder for ``load_format=dummy``, or the file of QUANTISED."""
    if family == QUANTISED:
        return write_quantised_model(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG | FAMILIES[family]))
    return folder


def make_engine(folder: Path, record: list | None = None, **settings) -> Engine:
    """An engine on the tiny model; settings as in EngineConfig."""
    defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "num_kv_blocks": 64, "num_threads": 1}
    defaults |= {} if folder.suffix == ".gguf" else {"load_format": "dummy"}
    config = EngineConfig(model=str(folder), **{**defaults, **settings})
    return load_engine(config, record=record)


def request(request_id: str, prompt: list[int], **params) -> EngineRequest:
    """A greedy request unless told otherwise; fields of EngineRequest go to it, the others to SamplingParams."""
    own = {
        name: params.pop(name) for name in ("priority", "cache_salt", "attempt", "output_token_ids") if name in params
    }
    return EngineRequest(request_id, prompt, SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **params}), **own)


def deltas_in(items: Iterable[StreamItem]) -> Iterator[TokenDelta]:
    """What a message of a token stream says of requests, one by one."""
    for item in items:
        if isinstance(item, PlainTokens):
            yield from item.deltas()
        elif isinstance(item, TokenDelta):
            yield item


def tokens_of(deltas: list[TokenDelta]) -> list[int]:
    """All tokens of a request, after a check that no index is missing or repeated."""
    tokens: list[int] = []
    first = deltas[0].index if deltas else 0
    for delta in deltas:
        assert delta.index == first + len(tokens), f"expected index {first + len(tokens)}, got {delta.index}"
        tokens += delta.token_ids
    return tokens


def answer(deltas: list[TokenDelta]) -> tuple:
    """Everything a client could see of a request, for comparison bit by bit."""
    return (
        tokens_of(deltas),
        [logprobs for delta in deltas for logprobs in delta.logprobs or []],
        [delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None],
        deltas[-1].finish_reason,
        deltas[-1].matched_stop,
    )
