"""The way of requests and tokens through a whole engine actor."""

from __future__ import annotations

import asyncio

from tests.actors.subscriber import Subscriber, subscribed, told
from tests.engines import answer, make_engine, request


async def test_the_stream_carries_the_tokens_and_the_reply_their_number(actor, tiny_model):
    engine = make_engine(tiny_model)
    expected = engine.generate(
        [request("a", [3, 4, 5], ignore_eos=True), request("b", [9] * 30, max_tokens=3, ignore_eos=True)]
    )
    engine.close()
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    replies = await asyncio.gather(
        actor.generate(subscribed("a", [3, 4, 5], ignore_eos=True)),
        actor.generate(subscribed("b", [9] * 30, max_tokens=3, ignore_eos=True)),
    )
    assert list(map(told, replies)) == [(8, "length"), (3, "length")]
    await stream.wait_for("a", 8)
    assert {name: answer(stream.of(name)) for name in "ab"} == {name: answer(expected[name]) for name in "ab"}
