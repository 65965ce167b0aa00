"""Ten thousand random steps on the GPU, and with batch_invariant answers that belong to the request alone."""

from __future__ import annotations

import os

import numpy as np
import paddle
import pytest

from actors.models.decoder import Decoder
from gpu_ops.host_flag import copy_async
from tests.actors.runner.test_overlap import answers
from tests.gpu.parts.engines import gpu_engine
from tests.random_load import (
    LIMIT,
    SMALL_ENGINE,
    RandomLoad,
    add_pauses,
    add_preemptions,
    check_random_steps,
)

NUM_STEPS = int(os.environ.get("BIREME_RANDOM_STEPS", "10000"))


def make(folder, seed: int, **settings):
    """A small engine whose host and device are late at random, and whose released buffers hold nonsense."""
    engine = gpu_engine(folder, **SMALL_ENGINE, **settings)
    engine.executor.poison_released = True
    ballast = [paddle.empty([1 << 24], "int64") for _ in range(2)]

    def keep_busy(seconds: float) -> None:
        # 268 MB read and written take about 0.06 ms.
        with paddle.no_grad():
            for _ in range(int(seconds / 6e-5)):
                copy_async(*ballast)

    add_pauses(engine.executor, np.random.default_rng(seed), keep_busy)
    return engine


@pytest.mark.parametrize("most", [None, 10])
def test_random_steps_give_the_same_bits_overlapped_and_plain(tiny_gpu_model, monkeypatch, most):
    """With graphs of all steps, and of those with prompts of at most 10 tokens."""
    if most is not None:
        monkeypatch.setattr(Decoder, "max_launch_bound_rows", most)
    check_random_steps(lambda seed: make(tiny_gpu_model, seed), NUM_STEPS // 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_batch_invariant_bits_depend_on_no_neighbour_preemption_or_chunk(tiny_gpu_model, dtype):
    """Tokens and log-probabilities of random requests: alone in whole prompts, and crowded in chunks of several sizes."""
    settings = {"batch_invariant": True, "dtype": dtype}
    load = RandomLoad(int(np.random.default_rng().integers(2**31)))
    requests = [load.request() for _ in range(24)]
    alone = gpu_engine(
        tiny_gpu_model, max_num_seqs=1, max_num_batched_tokens=128, max_model_len=LIMIT, enable_prefix_caching=False,
        **settings,
    )  # fmt: skip
    expected = answers(alone, requests)
    for budget in (16, 17, 32, 64, 128):
        engine = gpu_engine(tiny_gpu_model, **SMALL_ENGINE | {"max_num_batched_tokens": budget}, **settings)
        add_preemptions(engine, budget)
        given = answers(engine, requests)
        assert engine.scheduler.num_preemptions > 0
        for one in requests:
            assert given[one.request_id] == expected[one.request_id], (budget, one)
