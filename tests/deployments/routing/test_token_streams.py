"""Streams of tokens that fall silent."""

from __future__ import annotations

import asyncio
import time

import pytest

from cluster.outputs import AttachRequired, EngineLoad
from deployments.routing import token_streams
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.token_streams import TokenStream, TokenStreams
from tests.deployments.routing.scripted_engine import Engine
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")


async def test_an_engine_that_falls_silent_gets_nothing_new_before_it_is_given_up(monkeypatch):
    # More than one late look at the clock counts for.
    monkeypatch.setattr(token_streams, "_SUSPECT_S", 0.6)
    choices = EngineChoices()
    lost: list[str] = []
    engine = Engine()
    streams = TokenStreams(
        "s", choices, lambda *_: None, dict, lambda stream, why: lost.append(why), hang_timeout_s=60.0
    )
    streams.attach(AttachRequired("e", engine, "f"))
    speaking = asyncio.create_task(_speak(engine))
    await asyncio.sleep(0.8)
    assert not choices.is_avoided("e")
    speaking.cancel()
    await until(lambda: choices.is_avoided("e"), 5)
    await asyncio.sleep(0.8)
    assert choices.is_avoided("e")
    speaking = asyncio.create_task(_speak(engine))
    await until(lambda: not choices.is_avoided("e"), 5)
    speaking.cancel()
    await streams.close()
    assert not lost


async def _speak(engine: Engine) -> None:
    while True:
        engine.messages.put_nowait([])
        await asyncio.sleep(0.05)


async def test_on_one_machine_what_an_engine_says_is_as_old_as_its_sample(monkeypatch):
    """A message may have lain in the socket for a while."""
    stream = TokenStream(AttachRequired("e", None, "f"))
    assert stream.load_age_s == float("inf")
    load = EngineLoad(free=1, max_queued=0, sampled_at=time.time() - 7)
    stream.announced(load)
    assert stream.load_age_s < 5, "clocks of two machines are not compared"
    stream.reached(1, None)
    assert 7 <= stream.load_age_s < 7 + 5
    stream.pid = 0
    stream.announced(load._replace(told_after_s=7.0))
    assert 7 <= stream.load_age_s < 7 + 5, "what was old when it was told is as old on another machine"
