"""Thousands of random steps: overlapped and plain execution of one schedule give the same bits, whoever is late."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.engines import OTHER_MODELS, make_engine, write_tiny_model
from tests.random_load import (
    SMALL_ENGINE,
    RandomLoad,
    add_pauses,
    check_random_steps,
    record_overlapped,
)


def make(folder, seed: int, **settings):
    """A small engine whose host and device are late at random, and whose released buffers hold nonsense."""
    engine = make_engine(folder, **SMALL_ENGINE, **settings)
    engine.executor.poison_released = True
    runner = engine.executor
    add_pauses(runner, np.random.default_rng(seed), lambda seconds: runner.stream.run(lambda: time.sleep(seconds)))
    return engine


@pytest.mark.parametrize("num_steps", [400, pytest.param(4_000, marks=pytest.mark.slow)])
def test_random_steps_give_the_same_bits_overlapped_and_plain(tiny_model, num_steps):
    check_random_steps(lambda seed: make(tiny_model, seed), num_steps)


@pytest.mark.parametrize("family", OTHER_MODELS)
def test_random_steps_of_other_models_give_the_same_bits(tmp_path, family):
    folder = write_tiny_model(tmp_path, family)
    check_random_steps(lambda seed: make(folder, seed), 400)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_random_steps_with_other_types_of_the_cache_give_the_same_bits(tiny_model, dtype):
    check_random_steps(lambda seed: make(tiny_model, seed, kv_cache_dtype=dtype), 400)


def test_a_reader_of_released_buffers_is_found_out(tiny_model):
    """The poison works: a step that is saved from buffers which were given back goes wrong."""
    engine = make(tiny_model, 1)
    save = engine.executor._save_output

    def save_after_release(out):
        plan = out.plan
        out.wait()
        out.release(poison=True)
        out.plan = plan
        return save(out)

    engine.executor._save_output = save_after_release
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        record_overlapped(engine, RandomLoad(1), 50)
