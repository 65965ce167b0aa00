"""The runner actor without Ray: one asyncio loop drives it the way Ray would."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time

import pytest

from actors import delta_stream, live_requests, place_reservations, requests_ahead
from actors.engine_actor import RunnerActor
from cluster.config import EngineConfig
from cluster.errors import EngineDeadError, InvalidRequestError, ModelLoadError, StaleAttemptError
from cluster.grammar import JSON_SCHEMA, REGEX, Grammar
from cluster.outputs import AttachRequired, EngineLoad, GenerateReply, NotAdmitted, TokenDelta
from tests.actors.structured_output.json_tokenizer import json_tokenizer, write_json_tokenizer
from tests.engines import answer, deltas_in, make_engine, request, write_tiny_model
from tests.waiting import until


def told(reply: GenerateReply) -> tuple[int, str]:
    """What a reply says besides when."""
    return reply.num_tokens, reply.finish_reason


def subscribed(name: str, prompt: list[int], attempt: int = 0, **params):
    made = request(name, prompt, attempt=attempt, **params)
    made.subscriber = "ingress"
    return made


class Subscriber:
    """Collects what an attached stream brings."""

    def __init__(self, actor: RunnerActor, resume: dict[str, int] | None = None) -> None:
        self.messages: list = []
        self.task = asyncio.create_task(self._run(actor, resume or {}))

    async def _run(self, actor, resume):
        async for message in actor.attach("ingress", resume):
            self.messages.append(message)

    def of(self, name: str) -> list:
        """What was said about a request, without the word that it was taken."""
        deltas = [d for message in self.messages for d in deltas_in(message) if d.request_id == name]
        return [delta for delta in deltas if delta.token_ids or delta.finish_reason]

    async def wait_for(self, name: str, count: int) -> None:
        await until(lambda: len(self.of(name)) >= count, 20)


@pytest.fixture
async def actor(tiny_model):
    config = EngineConfig(
        model=str(tiny_model), load_format="dummy", max_num_seqs=4, max_num_batched_tokens=64, num_kv_blocks=64
    )
    made = RunnerActor(config, "engine-1")
    info = await made.start()
    assert info.engine_id == "engine-1" and info.vocab_size == 128
    yield made
    await made.shutdown()


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


async def test_a_request_needs_the_subscribers_stream_first(actor):
    reply = await actor.generate(subscribed("a", [1, 2]))
    assert isinstance(reply, AttachRequired) and reply.fingerprint.startswith("bireme-")
    assert (await actor.check_integrity())["num_requests_running"] == 0


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


async def test_cancelling_the_call_aborts_the_request_within_two_steps(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    call = asyncio.create_task(actor.generate(subscribed("a", [1], max_tokens=500)))
    await stream.wait_for("a", 3)
    call.cancel()
    await asyncio.sleep(0)
    loop, steps = actor._engine_loop, actor._engine_loop.num_steps
    read = loop.call(lambda engine: (engine.scheduler.kv_cache.num_available, loop.num_steps))
    available, steps_then = await asyncio.wrap_future(read)
    assert available == 64
    assert steps_then <= steps + 2


async def test_a_call_cancelled_before_the_engine_took_it_harms_nobody(actor):
    Subscriber(actor)
    await asyncio.sleep(0)
    busy = asyncio.create_task(actor.generate(subscribed("busy", [1], max_tokens=200)))
    for number in range(200):
        call = asyncio.create_task(actor.generate(subscribed(str(number), [1])))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.sleep(0)
    assert told(await busy) == (200, "length")
    assert (await actor.check_integrity())["num_requests_running"] == 0
    left = {key for key, _ in actor._live.unfinished()}
    assert left == set(), "what the engine never had must not be remembered"


async def test_a_request_that_cannot_begin_fails_alone_and_leaves_nothing(actor, monkeypatch):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    running = asyncio.create_task(actor.generate(subscribed("runs", [1], max_tokens=100, ignore_eos=True)))
    await stream.wait_for("runs", 1)
    free = actor.news_for("ingress").free
    with monkeypatch.context() as broken:
        broken.setattr(actor._reservations, "take", lambda *arguments: 1 / 0)
        actor.begin(subscribed("ahead", [1]))  # as the token socket does, whose connection others use, too
        with pytest.raises(ZeroDivisionError):
            await actor.generate(subscribed("called", [1]))
    with pytest.raises(ZeroDivisionError):
        await actor.generate(subscribed("ahead", [1]))  # its call, which follows
    assert actor.news_for("ingress").free == free
    assert told(await running) == (100, "length")
    assert told(await actor.generate(subscribed("called", [1], ignore_eos=True))) == (8, "length")
    assert not list(actor._live.unfinished())


async def test_an_answer_that_ended_long_ago_is_forgotten_though_nobody_asks_for_anything(actor, monkeypatch):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    await actor.generate(subscribed("a", [1], ignore_eos=True))
    await stream.wait_for("a", 8)
    assert ("a", 0) in actor._live, "its subscriber may yet lose the stream"
    monkeypatch.setattr(live_requests, "RETENTION_S", 0.2)
    await until(lambda: not len(actor._live), 10)
    assert actor._live.newest_attempt("a") == -1


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


async def test_a_newer_attempt_ends_the_older_one_and_the_older_is_fenced(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    old = asyncio.create_task(actor.generate(subscribed("a", [5, 6], max_tokens=400)))
    await stream.wait_for("a", 4)
    known = [token for delta in stream.of("a")[:4] for token in delta.token_ids]
    reply = await actor.generate(subscribed("a", [5, 6], attempt=1, output_token_ids=known, max_tokens=8))
    assert told(reply) == (8, "length")
    assert list(reply.marks) == ["runner", "scheduled", "first_step"]
    assert reply.marks["runner"] <= reply.marks["first_step"] <= time.time()
    assert (await old).finish_reason == "abort"
    with pytest.raises(StaleAttemptError, match="attempt 0 of a is older than attempt 1"):
        await actor.generate(subscribed("a", [5, 6]))


async def test_a_refusal_reaches_the_caller_and_leaves_nothing_behind(actor):
    Subscriber(actor)
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequestError, match="maximum context length is 512 tokens"):
        await actor.generate(subscribed("a", [1] * 20, max_tokens=500))
    assert (await actor.generate(subscribed("a", [1]))).num_tokens == 8


async def test_a_request_that_came_ahead_runs_at_once_and_its_call_gets_the_reply(actor):
    ahead = subscribed("a", [3, 4, 5], ignore_eos=True)
    actor.begin(ahead)
    assert not len(actor._live), "nobody listens yet"
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    actor.begin(ahead)
    actor.begin(ahead)
    await stream.wait_for("a", 8)
    assert [delta.index for delta in stream.of("a")] == list(range(8))
    assert told(await actor.generate(subscribed("a", [3, 4, 5], ignore_eos=True))) == (8, "length")
    actor.begin(ahead)  # later than its call
    await asyncio.sleep(0.05)
    assert len(stream.of("a")) == 8 and ("a", 0) not in actor._ahead

    actor.begin(subscribed("refused", [1] * 20, max_tokens=500))
    await asyncio.sleep(0.05)
    with pytest.raises(InvalidRequestError, match="maximum context length is 512 tokens"):
        await actor.generate(subscribed("refused", [1] * 20, max_tokens=500))

    actor.begin(subscribed("left", [1], max_tokens=400))
    await stream.wait_for("left", 2)
    await actor.abort("left", 0)
    assert told(await actor.generate(subscribed("left", [1], max_tokens=400)))[1] == "abort"

    actor.begin(subscribed("cut", [1], max_tokens=400))
    call = asyncio.create_task(actor.generate(subscribed("cut", [1], max_tokens=400)))
    await stream.wait_for("cut", 2)
    call.cancel()
    await until(lambda: not list(actor._live.unfinished()), 10)

    actor.begin(subscribed("moved", [1], max_tokens=400))
    await stream.wait_for("moved", 1)
    await actor.drain(0)
    assert (await actor.generate(subscribed("moved", [1], max_tokens=400))).finish_reason == "handover"
    actor.begin(subscribed("late", [1]))
    await stream.wait_for("late", 1)
    assert [(delta.token_ids, delta.finish_reason) for delta in stream.of("late")] == [([], "handover")]
    assert isinstance(await actor.generate(subscribed("late", [1])), NotAdmitted)
    await actor.check_integrity()


async def test_who_asked_ends_what_it_sent_ahead_in_the_same_breath_and_nobody_else_does(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    for name in ("left", "stays"):
        actor.begin(subscribed(name, [1], max_tokens=400))
    actor.give_up("ingress", ("left", 0))
    actor.give_up("somebody else", ("stays", 0))
    actor.give_up("ingress", ("unknown", 0))
    await until(lambda: any(delta.finish_reason == "abort" for delta in stream.of("left")), 10)
    await stream.wait_for("stays", 2)
    assert told(await actor.generate(subscribed("left", [1], max_tokens=400)))[1] == "abort"
    assert [key for key, _ in actor._live.unfinished()] == [("stays", 0)]
    await actor.abort("stays", 0)
    await until(lambda: not list(actor._live.unfinished()), 10)
    await actor.check_integrity()


async def test_a_request_whose_call_does_not_come_is_given_up_and_the_call_told_so(actor, monkeypatch):
    monkeypatch.setattr(requests_ahead, "CALL_PATIENCE_S", 0.2)
    monkeypatch.setattr(requests_ahead, "RETENTION_S", 2.0)
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    for name in ("long", "forgotten"):
        actor.begin(subscribed(name, [1], max_tokens=500))
    actor.begin(subscribed("short", [1], ignore_eos=True))
    await until(lambda: any(delta.finish_reason == "abort" for delta in stream.of("long")), 10)
    assert told(await actor.generate(subscribed("short", [1], ignore_eos=True))) == (8, "length")
    assert (await actor.generate(subscribed("long", [1], max_tokens=500))).finish_reason == "abort"
    await until(lambda: ("forgotten", 0) not in actor._ahead, 10)
    assert (await actor.check_integrity())["num_blocks_available"] == 64


@pytest.mark.parametrize("seed", range(3))
async def test_requests_calls_and_ends_come_in_any_order(actor, monkeypatch, seed):
    monkeypatch.setattr(requests_ahead, "CALL_PATIENCE_S", 0.5)
    rng = random.Random(seed)
    stream = Subscriber(actor)
    await asyncio.sleep(0)

    async def one(name: str) -> None:
        made = subscribed(name, [rng.randrange(100)], ignore_eos=True)
        steps = ["begin", "call", *rng.choice([(), ("abort",), ("cancel",), ("begin",), ("abort", "begin")])]
        rng.shuffle(steps)
        call: asyncio.Task | None = None
        for step in steps:
            await asyncio.sleep(rng.choice([0, 0, 0.001, 0.01, 0.03]))
            if step == "begin":
                actor.begin(made)
            elif step == "call":
                call = asyncio.create_task(actor.generate(made))
            elif step == "abort":
                await actor.abort(name, 0)
            elif call is not None:
                call.cancel()
        assert call is not None
        await asyncio.wait((call,), timeout=20)
        if "cancel" in steps:
            return
        reply = told(call.result())
        assert reply == (8, "length") or ("abort" in steps and reply[1] == "abort")
        if "abort" not in steps:
            await stream.wait_for(name, 8)
            assert [delta.index for delta in stream.of(name)] == list(range(8)), "each token once"

    await asyncio.gather(*(one(f"r{number}") for number in range(40)))
    await until(lambda: not list(actor._live.unfinished()), 10)
    assert (await actor.check_integrity())["num_blocks_available"] == 64


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


async def test_a_grammar_is_followed_or_refused_and_compiled_beside_the_engine(json_actor):
    stream = Subscriber(json_actor)
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequestError, match="response_format: the regex is not valid"):
        await json_actor.generate(subscribed("bad", [1], grammar=Grammar(REGEX, "[")))
    reply = await json_actor.generate(subscribed("a", [1], max_tokens=60, grammar=JSON_OBJECT))
    assert reply.finish_reason == "stop"
    await stream.wait_for("a", reply.num_tokens)
    text = json_tokenizer().decode([token for delta in stream.of("a") for token in delta.token_ids])
    assert set(json.loads(text)) <= {"ab"}

    compile_now, go_on, threads = json_actor._compile_grammar, threading.Event(), []

    def compile_late(one):
        threads.append(threading.current_thread().name)
        go_on.wait(20)
        return compile_now(one)

    json_actor._compile_grammar = compile_late
    made = {name: subscribed(name, [1], max_tokens=60, grammar=JSON_OBJECT) for name in ("ab", "ca", "or", "ok")}
    calls = {name: asyncio.create_task(json_actor.generate(one)) for name, one in made.items()}
    await until(lambda: len(json_actor._compiling) == 4, 20)
    assert told(await json_actor.generate(subscribed("plain", [1], ignore_eos=True))) == (8, "length")
    await json_actor.abort("ab", 0)
    assert told(await calls["ab"]) == (0, "abort")
    calls["ca"].cancel()
    newer = subscribed("or", [1], max_tokens=60, attempt=1, grammar=JSON_OBJECT)
    calls["newer"] = asyncio.create_task(json_actor.generate(newer))
    assert told(await calls["or"]) == (0, "abort")
    go_on.set()
    assert {(await calls[name]).finish_reason for name in ("ok", "newer")} == {"stop"}
    assert all(name.startswith("grammars") for name in threads) and 1 <= len(threads) <= 3
    assert not json_actor._compiling and not list(json_actor._live.unfinished())
    await json_actor.check_integrity()


async def test_a_request_whose_grammar_is_compiled_when_the_engine_leaves_is_handed_over(json_actor):
    Subscriber(json_actor)
    await asyncio.sleep(0)
    compile_now, go_on = json_actor._compile_grammar, threading.Event()
    json_actor._compile_grammar = lambda one: go_on.wait(20) and compile_now(one)
    call = asyncio.create_task(json_actor.generate(subscribed("a", [1], grammar=JSON_OBJECT)))
    await until(lambda: json_actor._compiling, 20)
    leaving = asyncio.create_task(json_actor.drain(20))
    await asyncio.sleep(0.05)
    go_on.set()
    assert told(await call) == (0, "handover")
    await asyncio.wait_for(leaving, 10)


async def test_a_dead_loop_fails_calls_and_health(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)

    def fail(rows, kv_cache):
        raise RuntimeError("device fault")

    await asyncio.wrap_future(actor._engine_loop.call(lambda engine: setattr(engine.executor.model, "forward", fail)))
    with pytest.raises(EngineDeadError, match="device fault"):
        await actor.generate(subscribed("a", [1]))
    with pytest.raises(EngineDeadError, match="device fault"):
        await actor.check_health()
    await asyncio.wait_for(stream.task, 10)


async def test_a_model_that_is_not_there_says_so():
    with pytest.raises(ModelLoadError, match="/nowhere"):
        await RunnerActor(EngineConfig(model="/nowhere/model.gguf"), "engine-1").start()


async def test_an_idle_stream_has_a_heartbeat_and_a_hung_step_ends_it(tiny_model):
    config = EngineConfig(model=str(tiny_model), load_format="dummy", num_kv_blocks=64, hang_timeout_s=0.5)
    hung = RunnerActor(config, "engine-1")
    await hung.start()
    stream = Subscriber(hung)
    await until(lambda: len(_loads(stream)) >= 3, 1.6)
    release = threading.Event()
    hung._engine_loop._engine.executor.model.forward = lambda rows, kv_cache: release.wait(20)
    call = asyncio.create_task(hung.generate(subscribed("a", [1])))
    started = asyncio.get_running_loop().time()
    with pytest.raises(EngineDeadError, match="hang_timeout_s"):
        await call
    assert asyncio.get_running_loop().time() - started < 2.0
    await asyncio.wait_for(stream.task, 5)
    with pytest.raises(EngineDeadError, match="hangs"):
        await hung.check_health()
    release.set()
    await hung.shutdown()


async def test_streams_say_how_much_the_engine_takes_when_it_has_changed(actor):
    stream = Subscriber(actor)

    def told() -> list[EngineLoad]:
        return _loads(stream)

    def rooms() -> list[tuple]:
        """Each once, as it was told again and again."""
        return [room for room, _ in itertools.groupby((load.free, load.max_queued, load.num_ended) for load in told())]

    await until(lambda: rooms() == [(4 + 256, 256, 0)], 5)
    assert told()[0].open_places == 4 and abs(told()[0].sampled_at - time.time()) < 5
    call = asyncio.create_task(actor.generate(subscribed("a", [1, 2, 3], max_tokens=200)))
    await until(lambda: len(rooms()) == 2, 5)
    # In the message that says that the request was taken, so that nobody counts it twice.
    with_room = [message for message in stream.messages if any(isinstance(item, EngineLoad) for item in message)]
    assert any(isinstance(message[0], TokenDelta) and message[0].is_first_word for message in with_room)
    await call
    with pytest.raises(InvalidRequestError):
        await actor.generate(subscribed("refused", []))
    await until(lambda: rooms()[-1] == (260, 256, 1), 5)
    assert rooms()[1] == (259, 256, 0)
    assert max(load.num_tokens for load in told()) >= 3
    await until(lambda: told()[-1].open_places == 4 and len(told()) > len(rooms()) + 1, 5)


def _slow_down(actor: RunnerActor, seconds: float) -> None:
    """Each of its steps takes so much longer."""
    model = actor._engine_loop._engine.executor.model
    forward = model.forward
    model.forward = lambda *args: (time.sleep(seconds), forward(*args))[1]


async def test_places_are_kept_for_who_reserves_them_and_for_nobody_for_long(actor, monkeypatch):
    monkeypatch.setattr(place_reservations, "RESERVED_FOR_S", 1.5)
    _slow_down(actor, 0.01)  # 300 tokens outlast the reservation: no place is free because an answer has ended
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    kept = await actor.reserve("ingress", 3)
    others = await actor.reserve("other", 3)
    assert (kept.places, others.places) == (3, 1)
    await actor.give_back("other", kept.number, 1)
    await actor.give_back("other", others.number, 1)
    # A stranger finds the one place that is left; the next one waits, though slots are free.
    calls = [
        asyncio.create_task(actor.generate(subscribed(name, [1], max_tokens=300, ignore_eos=True)))
        for name in ("x", "y")
    ]
    await stream.wait_for("x", 2)
    assert not stream.of("y")
    moved = subscribed("m", [1], max_tokens=300, ignore_eos=True)
    moved.place = kept.number
    calls.append(asyncio.create_task(actor.generate(moved)))
    await stream.wait_for("m", 1)
    assert not stream.of("y"), "two more places are kept"
    await stream.wait_for("y", 1)
    assert not len(actor._reservations), "it has waited until the others were given up"
    for call in calls:
        call.cancel()
    await until(lambda: _loads(stream)[-1].open_places == 4, 10)
    newer = await actor.reserve("ingress", 9)
    assert newer.places == 4
    await actor.give_back("ingress", kept.number, 9)
    assert len(actor._reservations) == 4, "a call that was late says nothing of newer places"
    await actor.give_back("ingress", newer.number, 9)
    assert (await actor.check_integrity())["num_requests_running"] == 0


async def test_a_call_cancelled_before_the_engine_took_it_leaves_its_place_to_others(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    kept, go_on = await actor.reserve("ingress", 2), threading.Event()
    busy = actor._engine_loop.call(lambda engine: go_on.wait(20))  # meanwhile it takes nothing
    calls = []
    for name in ("ahead", "called"):
        moved = subscribed(name, [1], max_tokens=300, ignore_eos=True)
        moved.place = kept.number
        if name == "ahead":
            actor.begin(moved)
            actor.give_up("ingress", (name, 0))
        calls.append(asyncio.create_task(actor.generate(moved)))
        await asyncio.sleep(0)
    calls[1].cancel()
    await asyncio.sleep(0)
    assert len(actor._arrivals) == 2 and not busy.done()
    go_on.set()
    assert told(await calls[0]) == (0, "abort")
    await until(lambda: not len(actor._live) and not len(actor._arrivals), 10)
    assert (await actor.reserve("other", 9)).places == 4
    assert not [delta for delta in stream.of("called") if delta.token_ids]


async def test_who_comes_too_late_for_its_place_waits_like_any_other_and_takes_nobodys(actor):
    _slow_down(actor, 0.01)
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    calls = [asyncio.create_task(actor.generate(subscribed("a", [1], max_tokens=300, ignore_eos=True)))]
    await stream.wait_for("a", 1)
    late = await actor.reserve("ingress", 1)
    await actor.give_back("ingress", late.number, 1)
    others = await actor.reserve("other", 3)
    assert others.places == 3
    for name, place in (("x", 0), ("y", late.number), ("z", others.number)):
        request = subscribed(name, [1], max_tokens=300, ignore_eos=True)
        request.place = place
        calls.append(asyncio.create_task(actor.generate(request)))
    await until(lambda: (_loads(stream)[-1].line_length, _loads(stream)[-1].num_movable) == (3, 3), 5)
    assert len(actor._reservations) == 3
    assert await asyncio.wait_for(asyncio.to_thread(_order_of_service, actor), 5) == ["x", "y", "z"]
    await actor.give_back("other", others.number, 3)
    await stream.wait_for("z", 1)
    for call in calls:
        call.cancel()
    await until(lambda: not actor._live.num_unfinished, 10)
    await actor.check_integrity()


async def test_a_place_is_free_again_when_its_request_is_cancelled_on_its_way_to_the_engine(actor):
    Subscriber(actor)
    await asyncio.sleep(0)
    kept = await actor.reserve("ingress", 1)
    is_busy, goes_on = threading.Event(), threading.Event()
    actor._engine_loop.call(lambda engine: (is_busy.set(), goes_on.wait(10)))
    assert await asyncio.to_thread(is_busy.wait, 10)
    request = subscribed("a", [1])
    request.place = kept.number
    call = asyncio.create_task(actor.generate(request))
    await until(lambda: len(actor._arrivals), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    goes_on.set()
    reserved = actor._engine_loop.call(lambda engine: engine.scheduler.num_reserved)
    assert await asyncio.wrap_future(reserved) == 0
    await actor.check_integrity()


def _order_of_service(actor) -> list[str]:
    call = actor._engine_loop.call(lambda engine: [s.request.request_id for s in engine.scheduler.waiting])
    return call.result()


async def test_waiting_requests_go_back_to_their_ingress_in_the_order_of_service(actor):
    stream, waiting = Subscriber(actor), "efghij"
    _slow_down(actor, 0.02)
    await asyncio.sleep(0)
    running = [
        asyncio.create_task(actor.generate(subscribed(name, [1], max_tokens=200, ignore_eos=True))) for name in "abcd"
    ]
    await stream.wait_for("d", 1)
    calls = [asyncio.create_task(actor.generate(subscribed(name, [2] * 10))) for name in waiting]
    await until(lambda: _loads(stream)[-1].num_movable == len(waiting), 5)
    assert _loads(stream)[-1].open_places == 0
    assert await actor.hand_back("ingress", 2, 1000) == 0, "they have just come"
    await until(lambda: _loads(stream)[-1].oldest_wait_s > 0.2, 5)
    assert await actor.hand_back("other", 2, 1000) == 0
    assert await actor.hand_back("ingress", 4, 25) == 2, "there is memory for two"
    assert list(map(told, await asyncio.gather(*calls[:2]))) == [(0, "move")] * 2
    assert await actor.hand_back("ingress", 9, 1000) == len(waiting) - 2
    assert all(told(reply) == (0, "move") for reply in await asyncio.gather(*calls))
    assert not any(task.done() for task in running), "who has begun stays"
    for task in running:
        task.cancel()
    await until(lambda: not actor._live.num_unfinished, 10)
    await actor.check_integrity()


def _loads(stream: Subscriber) -> list[EngineLoad]:
    return [item for message in stream.messages for item in message if isinstance(item, EngineLoad)]


async def test_streams_say_with_how_many_tokens_the_engine_has_to_do(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)

    def told() -> list[int]:
        return [d.num_tokens for message in stream.messages for d in message if isinstance(d, EngineLoad)]

    _slow_down(actor, 0.004)  # so that beats come while it writes
    calls = [asyncio.create_task(actor.generate(subscribed("a", [1, 2, 3], max_tokens=400, ignore_eos=True)))]
    # As it writes, without a request that comes or ends.
    await until(lambda: any(3 < one < 400 for one in told()[2:]) and len(stream.messages) > 40, 10)
    calls += [asyncio.create_task(actor.generate(subscribed(name, [1] * 50, max_tokens=400))) for name in "bcdef"]
    await until(lambda: told()[-1] > 250, 5)  # one of them waits
    for call in calls:
        call.cancel()
    await until(lambda: told()[-1] == 0, 10)
    # Not in each step's message: a step is a few milliseconds.
    loads = _loads(stream)
    unasked = sum(before.room == after.room for before, after in itertools.pairwise(loads))
    # Beats, and as many again if steps were long.
    assert unasked <= 2 * (loads[-1].sampled_at - loads[0].sampled_at) / delta_stream.HEARTBEAT_S + 2
    assert not actor._live.num_unfinished


async def test_streams_say_who_waits_and_what_the_cache_holds(actor):
    """Also while a step takes long: who has come meanwhile waits, though the engine's thread knows nothing of it."""
    stream = Subscriber(actor)
    await until(lambda: _loads(stream), 5)
    warmed_up = _loads(stream)[0]
    began, release = threading.Event(), threading.Event()
    model = actor._engine_loop._engine.executor.model
    forward = model.forward
    # Steps that last, so that a beat comes while all seats are taken.
    model.forward = lambda *args: (began.set(), release.wait(20), time.sleep(0.004), forward(*args))[3]
    prompt = [3] * 40
    calls = [asyncio.create_task(actor.generate(subscribed("a", prompt, max_tokens=300, ignore_eos=True)))]
    await asyncio.to_thread(began.wait, 20)
    in_step_since = time.time()
    # Long enough that a beat of the stream comes while four run and three wait.
    lasting = {"max_tokens": 150, "ignore_eos": True}
    calls += [asyncio.create_task(actor.generate(subscribed(name, prompt, **lasting))) for name in "bcdefg"]
    await until(lambda: _loads(stream)[-1].num_waiting >= 6, 5)
    waiting = _loads(stream)[-1]
    assert waiting.num_waiting * 40 == waiting.waiting_tokens <= waiting.uncomputed_tokens <= waiting.num_tokens
    await until(lambda: _loads(stream)[-1].longest_wait_s > 0.4, 5)
    told = _loads(stream)[-1]
    # Of before the step, however often it is told: the engine's thread has looked at nothing since.
    assert told.sampled_at <= in_step_since and told.told_after_s > 0.4
    num_told = len(_loads(stream))
    release.set()
    await until(lambda: _loads(stream)[-1].sampled_at > in_step_since, 5)
    assert len(_loads(stream)) > num_told
    # In the queue itself, as four of the seven have slots. The actor may be told a little later that they were taken.
    await until(lambda: ((now := _loads(stream)[-1]).num_running, now.num_waiting, now.num_arrived) == (4, 3, 7), 5)
    full = _loads(stream)[-1]
    assert full.waiting_tokens == 120 and full.running_tokens >= 160
    assert full.longest_wait_s > 0.4
    assert 0 < full.free_kv_tokens < full.kv_tokens == 64 * 16
    await asyncio.gather(*calls[1:])
    calls[0].cancel()
    await until(lambda: _loads(stream)[-1].num_tokens == 0 and _loads(stream)[-1].num_running == 0, 10)
    idle = _loads(stream)[-1]
    assert (idle.num_waiting, idle.waiting_tokens, idle.uncomputed_tokens, idle.longest_wait_s) == (0, 0, 0, 0.0)
    await until(lambda: _loads(stream)[-1].told_after_s == 0.0, 5)  # nothing to do: it is as it was seen last
    assert abs(_loads(stream)[-1].sampled_at - time.time()) < 5
    assert idle.free_kv_tokens == idle.kv_tokens
    assert idle.num_prompt_tokens - warmed_up.num_prompt_tokens == 280
    num_cached = idle.num_cached_prompt_tokens - warmed_up.num_cached_prompt_tokens
    assert 0 < num_cached <= 6 * 32
    assert idle.num_preemptions or idle.num_prefill_tokens - warmed_up.num_prefill_tokens == 280 - num_cached
    assert idle.num_steps - warmed_up.num_steps > 40
    stats = await actor.check_integrity()
    assert stats["num_requests_arrived"] == 7 and stats["num_kv_tokens_free"] == 64 * 16
    assert idle.num_generated_tokens <= stats["num_generated_tokens"]
    assert not len(actor._arrivals)


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


async def test_a_leak_ends_the_engine_as_soon_as_it_is_idle(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    await actor.generate(subscribed("a", [1, 2, 3]))
    await asyncio.wrap_future(actor._engine_loop.call(lambda engine: engine.scheduler.kv_cache.allocate(1)))
    await asyncio.wait_for(stream.task, 5)
    with pytest.raises(EngineDeadError, match="died"):
        await actor.check_health()


async def test_drain_lets_a_short_request_finish_and_hands_over_a_long_and_a_waiting_one(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    calls = {
        name: asyncio.create_task(actor.generate(subscribed(name, [5, 6], max_tokens=500 if name != "short" else 20)))
        for name in ("long", "b", "c", "short", "waiting")
    }
    await stream.wait_for("long", 3)
    await asyncio.wrap_future(actor._engine_loop.call(slow_down))
    moved = await actor.drain(1.0)
    assert moved == 4
    replies = {name: await call for name, call in calls.items()}
    assert told(replies["short"]) == (20, "length")
    assert {name for name, reply in replies.items() if reply.finish_reason == "handover"} == {
        "long",
        "b",
        "c",
        "waiting",
    }
    assert replies["waiting"].num_tokens == 0
    assert isinstance(await actor.generate(subscribed("late", [1])), NotAdmitted)
    cache = actor._engine_loop._engine.scheduler.kv_cache
    await until(lambda: cache.num_available == cache.num_blocks, 5)
    assert (await actor.check_integrity())["state"] == "draining"


async def test_a_leased_stream_ends_when_its_subscriber_is_not_heard_of(actor, monkeypatch):
    monkeypatch.setattr("actors.engine_actor.ORPHAN_S", 0.6)
    messages = actor.attach("ingress", {}, leased=True)
    listening = asyncio.create_task(drain_all(messages))
    await asyncio.sleep(0)
    call = asyncio.create_task(actor.generate(subscribed("a", [1], max_tokens=500)))
    await asyncio.wrap_future(actor._engine_loop.call(slow_down))
    for _ in range(4):
        await asyncio.sleep(0.25)
        await actor.renew("ingress")
    assert not call.done()
    assert (await call).finish_reason == "abort"
    await asyncio.wait_for(listening, 5)


def slow_down(engine) -> None:
    """Ten milliseconds more a step."""
    forward = engine.executor.model.forward
    engine.executor.model.forward = lambda rows, kv_cache: (time.sleep(0.01), forward(rows, kv_cache))[1]


async def drain_all(messages) -> None:
    async for _ in messages:
        pass
