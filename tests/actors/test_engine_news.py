"""Streams break, are resumed, and end with those who listened."""

from __future__ import annotations

import asyncio

import pytest

from actors import delta_stream
from actors.requests import ended_answers
from cluster.errors import InvalidRequestError
from cluster.outputs import ENGINE_LEAVES, FINISH_HANDOVER, EngineLoad, TokenDelta
from tests.actors.idle_loop import IdleLoop, serve
from tests.actors.subscriber import Subscriber, slow_down, subscribed
from tests.engines import deltas_in
from tests.waiting import until


async def test_a_broken_stream_resumes_from_an_index(actor):
    first = Subscriber(actor)
    await asyncio.sleep(0)
    call = asyncio.create_task(actor.generate(subscribed("a", [7, 7], max_tokens=40)))
    await first.wait_for("a", 5)
    first.task.cancel()
    seen = len(first.of("a"))
    await call  # finishes while nobody listens
    second = Subscriber(actor, {"a": seen})
    await second.wait_for("a", 40 - seen)
    indices = [delta.index for delta in first.of("a") + second.of("a")]
    assert indices == list(range(40))
    assert second.of("a")[-1].finish_reason == "length"


async def test_an_ended_answer_whose_words_are_gone_is_continued_as_it_would_have_been(actor, monkeypatch):
    params = {"max_tokens": 40, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    undisturbed = Subscriber(actor)
    await asyncio.sleep(0)
    await actor.generate(subscribed("twin", [7, 7], **params))
    await undisturbed.wait_for("twin", 40)
    expected = [token for delta in undisturbed.of("twin") for token in delta.token_ids]
    monkeypatch.setattr(ended_answers, "MAX_KEPT_BYTES", 0)
    call = asyncio.create_task(actor.generate(subscribed("a", [7, 7], **params)))
    await undisturbed.wait_for("a", 5)
    undisturbed.task.cancel()
    had = [token for delta in undisturbed.of("a") for token in delta.token_ids]
    await call  # finishes while nobody listens
    again = Subscriber(actor, {"a": len(had)})
    await again.wait_for("a", 1)
    assert again.of("a") == [TokenDelta("a", 0, len(had), [], finish_reason=FINISH_HANDOVER)]
    request = subscribed("a", [7, 7], attempt=1, **params)
    request.output_token_ids = had
    await actor.generate(request)
    await again.wait_for("a", 1 + 40 - len(had))
    said = [delta for delta in again.of("a") if delta.attempt == 1]
    assert len(had) < 40 and [delta.index for delta in said] == list(range(len(had), 40))
    assert had + [token for delta in said for token in delta.token_ids] == expected


async def test_an_answer_that_ended_long_ago_is_forgotten_though_nobody_asks_for_anything(actor, monkeypatch):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    await actor.generate(subscribed("a", [1], ignore_eos=True))
    await stream.wait_for("a", 8)
    assert ("a", 0) in actor.serving.live, "its subscriber may yet lose the stream"
    monkeypatch.setattr(ended_answers, "RETENTION_S", 0.2)
    await until(lambda: not len(actor.serving.live), 10)
    assert actor.serving.live.newest_attempt("a") == -1


async def test_each_beat_of_a_stream_says_how_the_engine_is(actor, monkeypatch):
    """Also one that comes right after something else was told: what is known is never older than a beat."""
    monkeypatch.setattr(delta_stream, "HEARTBEAT_S", 0.2)
    stream = Subscriber(actor)
    await until(lambda: stream.messages, 5)
    for name in "abc":
        await asyncio.sleep(0.15)
        with pytest.raises(InvalidRequestError):
            await actor.generate(subscribed(name, []))  # comes and goes: two changes
    await until(lambda: len(stream.messages) > 12, 10)
    beats = [m for m in stream.messages if not any(deltas_in(m))]
    assert len(beats) > 4 and all(beats), "an empty message"


async def test_a_leased_stream_ends_when_its_subscriber_is_not_heard_of(actor, monkeypatch):
    monkeypatch.setattr("actors.engine_news.ORPHAN_S", 0.6)
    messages = actor.attach("ingress", {}, leased=True)
    listening = asyncio.create_task(drain_all(messages))
    await asyncio.sleep(0)
    call = asyncio.create_task(actor.generate(subscribed("a", [1], max_tokens=500)))
    slow_down(actor, 0.01)
    for _ in range(4):
        await asyncio.sleep(0.25)
        await actor.renew("ingress")
    assert not call.done()
    assert (await call).finish_reason == "abort"
    await asyncio.wait_for(listening, 5)


async def test_who_attaches_to_an_engine_that_leaves_is_told():
    serving = serve(IdleLoop())
    leaving = asyncio.create_task(serving.handover.drain(9))
    await asyncio.sleep(0)
    stream = delta_stream.DeltaStream()
    serving.news.subscribe("ingress", {}, stream)
    said = await anext(stream.messages(serving.watch.is_well, lambda: serving.news.load_for("ingress")))
    assert said[0] is ENGINE_LEAVES and isinstance(said[1], EngineLoad) and said[1].open_places == 0
    leaving.cancel()
    await serving.close()


async def drain_all(messages) -> None:
    async for _ in messages:
        pass
