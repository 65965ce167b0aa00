"""What is set aside of a GPU's memory before the KV cache gets the rest."""

from __future__ import annotations

import pytest

from actors.engine.memory_plan import gpu_pool_bytes, gpu_step_bytes, plan_memory
from actors.model_files.config import config_from_json
from actors.models.config import ModelConfig
from cluster.config import EngineConfig
from cluster.errors import ConfigError
from gpu_ops.kv_cache import CPU_TYPES
from tests.engines import TINY_CONFIG

GIB = 1 << 30


@pytest.fixture
def model() -> ModelConfig:
    return config_from_json(TINY_CONFIG, "config.json")


@pytest.mark.parametrize(("max_model_len", "parts"), [(100, 1), (257, 2), (None, 32), (1 << 20, 128)])
def test_batch_invariant_steps_keep_a_partial_result_for_each_part_of_the_longest_context(model, max_model_len, parts):
    def needed(batch_invariant: bool) -> int:
        config = EngineConfig(max_model_len=max_model_len, batch_invariant=batch_invariant)
        return gpu_step_bytes(config, model, budget=2048)

    assert needed(True) - needed(False) == 4 * 2048 * model.num_heads * parts * (model.head_dim + 4)


def test_what_steps_need_is_not_given_to_the_cache(model):
    config = EngineConfig(gpu_memory_utilization=0.9, enforce_eager=True)
    pool = gpu_pool_bytes(config, model, 2048, free=90 * GIB, total=100 * GIB, weights_loaded=True)
    assert pool == pytest.approx(80 * GIB - gpu_step_bytes(config, model, 2048), abs=1024)


def test_a_gpu_without_room_for_a_cache_is_refused(model):
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization is 0\.1"):
        gpu_pool_bytes(EngineConfig(gpu_memory_utilization=0.1), model, 2048, free=10 * GIB, total=10 * GIB)


@pytest.mark.parametrize(
    ("num_kv_blocks", "num_tokens", "streams"), [(8, 16, 8), (8, 17, 4), (8, 129, 0), (64, 16, 16)]
)
def test_streams_are_what_blocks_and_slots_hold(model, num_kv_blocks, num_tokens, streams):
    config = EngineConfig(max_num_seqs=16, num_kv_blocks=num_kv_blocks)
    plan = plan_memory(config, model, is_gpu=False, free=GIB, total=GIB)
    assert plan.num_streams(config, num_tokens) == streams
    assert (plan.num_blocks, plan.step_bytes, plan.graph_bytes) == (num_kv_blocks, 0, 0)


def test_a_smaller_type_of_the_kv_cache_has_room_for_more_streams(model):
    plans = {}
    for dtype in ("auto", *CPU_TYPES):
        config = EngineConfig(kv_cache_memory_gb=1 / 1024, kv_cache_dtype=dtype, max_num_seqs=1024)
        plans[dtype] = plan = plan_memory(config, model, is_gpu=False, free=GIB, total=GIB)
        numbers = 2 * 16 * model.num_layers * model.num_kv_heads * model.head_dim
        item_bytes = {"bfloat16": 2, "int8": 1 + 4 / model.head_dim}.get(dtype, 4)
        assert plan.block_bytes == numbers * item_bytes
        assert plan.num_streams(config, 16) == plan.num_blocks == GIB // 1024 // plan.block_bytes
    assert plans["auto"] == plans["float32"]
    assert plans["bfloat16"].num_blocks == 2 * plans["float32"].num_blocks


@pytest.mark.parametrize(
    ("dtype", "asked", "allowed"),
    [("auto", "int8", "auto, bfloat16"), ("bfloat16", "float32", "auto, bfloat16"), ("float16", "bfloat16", "auto")],
)
def test_a_type_that_a_gpu_does_not_keep_is_refused_with_those_that_it_does(model, dtype, asked, allowed):
    config = EngineConfig(dtype=dtype, kv_cache_dtype=asked)
    with pytest.raises(ConfigError, match=rf"kv_cache_dtype: .*got {asked}; allowed here: {allowed}$") as refused:
        plan_memory(config, model, is_gpu=True, free=20 * GIB, total=20 * GIB)
    assert refused.value.param == "kv_cache_dtype"
    for own in {"auto", allowed.split()[-1]}:
        kept = EngineConfig(dtype=dtype, kv_cache_dtype=own)
        plan = plan_memory(kept, model, is_gpu=True, free=20 * GIB, total=20 * GIB)
        assert plan.kv_cache_dtype == ("bfloat16" if dtype == "auto" else dtype)


def test_the_shares_of_a_gpu_are_within_what_may_be_used(model):
    config = EngineConfig(gpu_memory_utilization=0.5, decode_graph_memory_gb=1)
    plan = plan_memory(config, model, is_gpu=True, free=20 * GIB, total=20 * GIB)
    shares = plan.weight_bytes + plan.kv_cache_bytes + plan.step_bytes + plan.graph_bytes
    assert 10 * GIB - plan.block_bytes <= shares <= 10 * GIB
