"""Small engines for tests: a random two-layer model, one process, no Ray."""

from __future__ import annotations

import json
from pathlib import Path

from actors.engine.engine import Engine
from actors.engine.loading import load_engine
from cluster.config import EngineConfig
from cluster.outputs import TokenDelta
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams

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


def write_tiny_model(folder: Path, family: str = "llama") -> Path:
    """A folder that ``load_format=dummy`` serves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG | FAMILIES[family]))
    return folder


def make_engine(folder: Path, record: list | None = None, **settings) -> Engine:
    """An engine on the tiny model; settings as in EngineConfig."""
    defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "num_kv_blocks": 64, "num_threads": 1}
    config = EngineConfig(model=str(folder), load_format="dummy", **{**defaults, **settings})
    return load_engine(config, record=record)


def request(request_id: str, prompt: list[int], **params) -> EngineRequest:
    """A greedy request unless told otherwise; fields of EngineRequest go to it, the others to SamplingParams."""
    own = {
        name: params.pop(name) for name in ("priority", "cache_salt", "attempt", "output_token_ids") if name in params
    }
    return EngineRequest(request_id, prompt, SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **params}), **own)


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
