"""What an engine refuses to start with, and what makes two engines interchangeable."""

from __future__ import annotations

import time

import pytest

from actors.engine.stats.step_clock import StepClock
from cluster.errors import ConfigError
from tests.engines import make_engine, request


@pytest.mark.parametrize(
    ("settings", "message", "param"),
    [
        ({"max_model_len": 4096}, "at most 512", "max_model_len"),
        ({"num_kv_blocks": 4, "max_model_len": 65}, "holds 64 tokens", "max_model_len"),
        ({"num_kv_blocks": None, "kv_cache_memory_gb": 4096}, "this device has", "kv_cache_memory_gb"),
        ({"num_kv_blocks": 2**24, "block_size": 64}, "this device has", "num_kv_blocks"),
        ({"device": "gpu"}, "built without CUDA or finds no GPU", "device"),
        ({"dtype": "float16"}, "float32", "dtype"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(tiny_model, settings, message, param):
    with pytest.raises(ConfigError, match=message) as refused:
        make_engine(tiny_model, **settings)
    assert refused.value.param == param


def test_a_small_pool_shortens_what_a_request_may_have(tiny_model):
    engine = make_engine(tiny_model, num_kv_blocks=4)
    assert engine.info.max_model_len == 64
    engine.close()


def test_prefill_keeps_a_share_of_a_step_that_is_full_of_decoding_slots(tiny_model):
    engine = make_engine(tiny_model, max_num_seqs=64, max_num_batched_tokens=None, num_kv_blocks=512)
    for number in range(63):
        engine.add_request(request(str(number), [number + 1], max_tokens=60))
    for _ in range(4):
        engine.step()
    engine.add_request(request("late", list(range(100)), max_tokens=1))
    deltas = [delta for _ in range(6) for delta in engine.step() if delta.request_id == "late"]
    assert deltas and deltas[-1].finish_reason == "length"
    engine.close()


def test_generate_continues_what_was_queued_before(tiny_model):
    engine = make_engine(tiny_model)
    engine.add_request(request("before", [1, 2]))
    assert set(engine.generate([request("now", [3])])) == {"before", "now"}
    engine.close()


def test_idle_time_does_not_count_as_the_hosts(tiny_model, monkeypatch):
    def due_now(clock, now, *of_step):
        clock._plan_at = now
        return 0.0

    monkeypatch.setattr(StepClock, "seconds_to_wait", due_now)
    engine = make_engine(tiny_model)
    for name in ("first", "second"):
        engine.add_request(request(name, list(range(20)), max_tokens=24))
        while engine.has_work():
            engine.step()
            engine.seconds_to_wait()
        time.sleep(1.0)
    assert engine.figures()["host_lead_seconds"] < 0.8
    engine.close()
