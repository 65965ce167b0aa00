"""Token streams that are opened before they are needed."""

from __future__ import annotations

import asyncio
import logging

import pytest

from deployments.routing import early_streams
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.token_streams import TokenStreams
from tests.deployments.routing.scripted_engine import Client, Engine
from tests.waiting import until


async def test_an_engine_that_cannot_be_attached_is_told_of_once_and_forgotten_when_it_is_gone(monkeypatch, caplog):
    choices, asked = EngineChoices(), []
    monkeypatch.setattr(early_streams, "TICK_S", 0.01)
    streams = TokenStreams("ingress", choices, lambda *_: None, dict, lambda *_: None, 3.0)

    def find_runner(engine_id: str):
        asked.append(engine_id)
        raise OSError("no way")

    task = asyncio.create_task(early_streams.keep_attached(streams, choices, find_runner))
    try:
        with caplog.at_level(logging.ERROR, "ray.serve"):
            for engine_id in ("a", "b", "a"):
                choices.set_engines({engine_id: "f"})
                before = len(asked)
                await until(lambda before=before: asked[before:].count(choices_name(choices)) >= 3, 10)
    finally:
        task.cancel()
    told = [record.getMessage().split()[6].rstrip(";") for record in caplog.records]
    assert told == ["a", "b", "a"], "once each time that it came"


def choices_name(choices: EngineChoices) -> str:
    (name,) = choices.engines
    return name


@pytest.mark.usefixtures("this_node")
async def test_early_streams_go_on_after_an_error_that_nobody_expected(choices):
    engine, calls = Engine(), []

    def find_runner(engine_id: str) -> Engine:
        calls.append(engine_id)
        if len(calls) == 1:
            raise ConnectionError("the cluster's store does not answer")
        return engine

    client = Client(engine, choices=choices)
    client.attach_early(find_runner)
    await until(lambda: client.streams, 5)
    assert calls == ["e", "e"]
    await client.close()
