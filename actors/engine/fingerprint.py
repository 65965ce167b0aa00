"""What makes two engines interchangeable in the middle of an answer."""

from __future__ import annotations

import hashlib

from actors.device.cpu import CpuDevice
from actors.model_files.end_tokens import eos_token_ids
from actors.model_files.file_hash import content_id
from actors.model_files.source import ModelSource
from actors.model_files.weight_format import is_stored
from actors.model_files.weights import weights_fingerprint
from actors.structured_output.library import grammar_rules
from cluster import __version__
from cluster.config import EngineConfig
from cluster.routing.fingerprint import fingerprint_of
from gpu_ops.sources import sources_hash

# Settings whose value can change the bits of an answer, where it counts. What ``model``, ``tokenizer`` and ``load_format`` stand
# for is content, which is hashed itself.
CONTENT = frozenset({"model", "tokenizer", "load_format"})
OF_ANSWERS = frozenset({"logprobs_mode"})
OF_DUMMY_WEIGHTS = frozenset({"dummy_seed"})
ON_A_GPU = frozenset({"dtype", "batch_invariant"})
# What it comes to counts.
OF_QUANTISED_FILES = frozenset({"weight_format"})
OF_THE_KV_CACHE = frozenset({"kv_cache_dtype"})
# Settings that change when and where something is computed, and how much fits. A new setting belongs into one of these.
KEEPS_BITS = frozenset(
    {
        "block_size",
        "decode_graph_memory_gb",
        "device",  # which one it is counts: its name is in the fingerprint of a GPU
        "enable_overlap_schedule",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "hang_timeout_s",
        "kv_cache_memory_gb",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_queue_share",
        "max_queued_requests",
        "model_id",
        "num_kv_blocks",
        "num_threads",
        "oldest_first_every",
        "prefill_delay_steps",
        "ready_weights_gb",
        "weights_from_peers",
        "simulated_step_s",
        "simulated_token_s",
    }
)


def fingerprint(config: EngineConfig, source: ModelSource, device: CpuDevice) -> str:
    """Equal for engines that continue each other's requests exactly: everything that changes bits is in it, and nothing else.

    On the CPU the kernels give the same bits on every instruction set, so only their sources count. A GPU's matmuls come
    from a library that chooses by chip, and its other kernels from a compiler that chooses how products are joined. Which tokens
    a grammar or a budget allows comes from a library and our own code around it, which count for answers under one
    (``cluster.routing.fingerprint``).
    """
    parts = [__version__, weights_fingerprint(source), _tokenizer_content(source), sources_hash()]
    parts.append(f"stored={is_stored(config, source, device.is_gpu)}")
    parts.append(f"kv={device.kv_cache_dtype}")
    parts.append(f"end={eos_token_ids(source)}")  # of more files than those above
    parts += [f"{name}={getattr(config, name)!r}" for name in sorted(OF_ANSWERS)]
    if config.load_format == "dummy":
        parts += [f"{name}={getattr(config, name)!r}" for name in sorted(OF_DUMMY_WEIGHTS)]
    if device.is_gpu:
        # The device knows which type auto stands for.
        parts += [device.name, device.math_version, *(f"{name}={getattr(device, name)!r}" for name in sorted(ON_A_GPU))]
    answers = "bireme-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return fingerprint_of(answers, grammar_rules()[:8])


def _tokenizer_content(source: ModelSource) -> str:
    """Digest of what the tokenizer is read from; where the files lie does not matter."""
    path = source.tokenizer
    if path is None:
        return ""
    files = sorted(f for f in path.iterdir() if f.name.startswith(("token", "special"))) if path.is_dir() else [path]
    return " ".join(content_id(file) for file in files if file.is_file())
