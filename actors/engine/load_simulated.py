"""From settings to an engine that computes nothing: its steps take the time that the settings say, its tokens are seeded.

What stands around an engine can be measured with it, and driven to its limits, without a device. Loads no Paddle.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

from actors.engine.clock import HostClock
from actors.engine.engine import Engine
from actors.engine.memory_plan import expected_max_model_len
from actors.engine.simulated import NextToken, SimulatedExecutor
from actors.model_files.config import load_model_config
from actors.model_files.source import model_of
from actors.models.config import ModelConfig
from actors.scheduling.kv_cache import KVCache
from actors.scheduling.prefill_delay import PrefillDelay
from actors.scheduling.scheduler import Scheduler
from actors.text.tokenizer import Tokenizer, load_tokenizer
from cluster import __version__
from cluster.config import EngineConfig
from cluster.outputs import EngineInfo
from cluster.process.cache import Progress

_DEFAULT_BUDGET = 2048
# A prime near 2^32 times the golden ratio: neighbours are far apart.
_STRIDE = 2_654_435_761


def load_simulated_engine(
    config: EngineConfig,
    engine_id: str = "engine",
    progress: Progress | None = None,
    ended: Callable[[str], None] = lambda stage: None,
) -> Engine:
    """As ``actors.engine.loading.load_engine``; of the model only configuration and tokenizer are read."""
    source = model_of(config)
    model, tokenizer = load_model_config(source), load_tokenizer(source)
    max_model_len = expected_max_model_len(config, model.max_position_embeddings)
    num_blocks = config.num_kv_blocks or config.max_num_seqs * -(-max_model_len // config.block_size) + 1
    ended("weights")
    clock = HostClock()
    executor = SimulatedExecutor(
        clock,
        lambda plan: config.simulated_step_s + plan.num_tokens * config.simulated_token_s,
        seeded_tokens(seeded_vocabulary(model, tokenizer), config.dummy_seed),
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        block_size=config.block_size,
        eos_token_ids=tuple(model.eos_token_ids),
    )
    scheduler = Scheduler(
        KVCache(num_blocks, config.block_size, config.enable_prefix_caching),
        config.max_num_seqs,
        config.max_num_batched_tokens or max(_DEFAULT_BUDGET, config.max_num_seqs),
        max_model_len,
        config.max_queued_requests,
        config.oldest_first_every,
        config.max_queue_share,
        PrefillDelay(config.prefill_delay_steps or 0),
    )
    name = config.model_id or source.name
    digest = hashlib.sha256(f"{__version__}\0{model.vocab_size}\0{config.dummy_seed}".encode()).hexdigest()[:16]
    info = EngineInfo(
        engine_id, f"simulated-{digest}", name, max_model_len, model.vocab_size, num_blocks, config.block_size
    )
    return Engine(scheduler, executor, info, clock, overlap=config.enable_overlap_schedule)


def seeded_vocabulary(model: ModelConfig, tokenizer: Tokenizer) -> list[int]:
    """The tokens that answers consist of: none that is special or ends an answer."""
    skipped = tokenizer.special_ids.union(model.eos_token_ids)
    return [token for token in range(model.vocab_size) if token not in skipped]


def seeded_tokens(vocabulary: list[int], seed: int) -> NextToken:
    """Tokens that depend on the request's id, their position and ``seed`` alone, so that any engine may go on with them."""

    def token(request_id: str, index: int) -> int:
        return vocabulary[(zlib.crc32(request_id.encode(), seed & 0xFFFFFFFF) + index * _STRIDE) % len(vocabulary)]

    return token
