"""What a start says of itself, and one that fails."""

from __future__ import annotations

import asyncio

import pytest

from actors.engine_actor import RunnerActor
from cluster.config import EngineConfig
from cluster.errors import ModelLoadError
from tests.actors.subscriber import Subscriber, subscribed


async def test_stats_say_what_the_start_took(actor):
    start = (await actor.stats())["start"]
    assert list(start["seconds"]) == ["runner", "paddle", "ops", "weights", "buffers", "warm_up", "ready"]
    assert start["stage"] is None
    assert start["seconds"]["weights"] > 0
    assert abs(sum(start["seconds"].values()) - start["total_s"]) < 0.01
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    await actor.generate(subscribed("a", [1, 2]))
    await stream.wait_for("a", 1)
    assert list((await actor.stats())["start"]["seconds"])[-2:] == ["seen", "first_token"]


async def test_a_model_that_is_not_there_says_so():
    with pytest.raises(ModelLoadError, match="/nowhere"):
        await RunnerActor(EngineConfig(model="/nowhere/model.gguf"), "engine-1").start()
