"""Requests under a grammar, from their call to their end."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from actors.engine_actor import RunnerActor
from cluster.config import EngineConfig
from cluster.errors import InvalidRequestError
from cluster.grammar import JSON_SCHEMA, REGEX, Grammar
from tests.actors.structured_output.json_tokenizer import json_tokenizer, write_json_tokenizer
from tests.actors.subscriber import Subscriber, subscribed, told
from tests.engines import write_tiny_model
from tests.waiting import until

JSON_OBJECT = Grammar(
    JSON_SCHEMA, '{"type":"object","properties":{"ab":{"type":"boolean"}},"additionalProperties":false}'
)


@pytest.fixture
async def json_actor(tmp_path):
    """On a model that has a tokenizer, so that grammars can be followed."""
    folder = write_json_tokenizer(write_tiny_model(tmp_path / "json"))
    made = RunnerActor(EngineConfig(model=str(folder), load_format="dummy", num_kv_blocks=64), "engine-1")
    await made.start()
    yield made
    await made.shutdown()


async def test_a_grammar_is_followed_or_refused_and_compiled_beside_the_engine(json_actor, monkeypatch):
    stream = Subscriber(json_actor)
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequestError, match="response_format: the regex is not valid"):
        await json_actor.generate(subscribed("bad", [1], grammar=Grammar(REGEX, "[")))
    reply = await json_actor.generate(subscribed("a", [1], max_tokens=60, grammar=JSON_OBJECT))
    assert reply.finish_reason == "stop"
    await stream.wait_for("a", reply.num_tokens)
    text = json_tokenizer().decode([token for delta in stream.of("a") for token in delta.token_ids])
    assert set(json.loads(text)) <= {"ab"}

    grammars, go_on, threads = json_actor.serving.engine.grammars, threading.Event(), []
    compile_now = grammars.prepare

    def compile_late(one):
        if not go_on.is_set():
            threads.append(threading.current_thread().name)
        go_on.wait(20)
        return compile_now(one)

    monkeypatch.setattr(grammars, "prepare", compile_late)
    made = {name: subscribed(name, [1], max_tokens=60, grammar=JSON_OBJECT) for name in ("ab", "ca", "or", "ok")}
    calls = {name: asyncio.create_task(json_actor.generate(one)) for name, one in made.items()}
    await until(lambda: len(json_actor.serving.compiler) == 4, 20)
    assert told(await json_actor.generate(subscribed("plain", [1], ignore_eos=True))) == (8, "length")
    await json_actor.abort("ab", 0)
    assert told(await calls["ab"]) == (0, "abort")
    calls["ca"].cancel()
    newer = subscribed("or", [1], max_tokens=60, attempt=1, grammar=JSON_OBJECT)
    calls["newer"] = asyncio.create_task(json_actor.generate(newer))
    assert told(await calls["or"]) == (0, "abort")
    go_on.set()
    assert {(await calls[name]).finish_reason for name in ("ok", "newer")} == {"stop"}
    assert len(threads) == 1 and threads[0].startswith("grammars")
    assert not json_actor.serving.compiler and not list(json_actor.serving.live.unfinished())
    await json_actor.check_integrity()


async def test_a_request_whose_grammar_is_compiled_when_the_engine_leaves_is_handed_over(json_actor, monkeypatch):
    Subscriber(json_actor)
    await asyncio.sleep(0)
    grammars, go_on = json_actor.serving.engine.grammars, threading.Event()
    compile_now = grammars.prepare
    monkeypatch.setattr(grammars, "prepare", lambda one: go_on.wait(20) and compile_now(one))
    call = asyncio.create_task(json_actor.generate(subscribed("a", [1], grammar=JSON_OBJECT)))
    await until(lambda: json_actor.serving.compiler, 20)
    leaving = asyncio.create_task(json_actor.drain(20))
    await asyncio.sleep(0.05)
    go_on.set()
    assert told(await call) == (0, "handover")
    await asyncio.wait_for(leaving, 10)
