"""Calls over the runner's socket are calls of its ``generate``: replies, errors, ends and losses are the same."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from pathlib import Path

import pytest

from actors.engine_actor import RunnerActor
from cluster.config import EngineConfig
from cluster.errors import EngineDeadError, InvalidRequestError, OverloadedError, StaleAttemptError
from cluster.outputs import AttachRequired, GenerateReply, NotAdmitted, NotBegun
from cluster.request import EngineRequest
from deployments.replica.frames import LENGTH, MAX_REQUEST_BYTES, UnusableSocketError, encode_request
from deployments.replica.runner_calls import CallSocket, RunnerCalls, RunnerFailure
from tests.actors.subscriber import Subscriber, subscribed, told
from tests.waiting import until


class Remote:
    """A method as Ray's handle of an actor has it."""

    def __init__(self, method) -> None:
        self.remote = lambda *given: asyncio.ensure_future(method(*given))


class Handle:
    """Stands where Ray's handle of the runner is, and counts what goes that way."""

    def __init__(self, actor: RunnerActor) -> None:
        self.through_ray: list[str] = []

        async def generate(request: EngineRequest):
            self.through_ray.append(request.request_id)
            return await actor.generate(request)

        self.generate, self.abort = Remote(generate), Remote(actor.abort)


class Linked:
    """A runner with an engine that computes nothing, and its replica's calls."""

    def __init__(self, actor: RunnerActor, folder: str) -> None:
        self.actor = actor
        self.handle = Handle(actor)
        self.socket = CallSocket(actor.generate, actor.serving.requests.ahead.take, actor.serving.requests.abort)
        self.path = os.path.join(folder, "c")
        self.calls = RunnerCalls(self.handle)
        self.lost: list[str] = []

    async def open(self) -> None:
        await self.socket.open(self.path)
        await self.calls.open(self.path, self.lost.append)


@pytest.fixture
async def linked():
    config = EngineConfig(device="simulated", max_num_seqs=2, max_queued_requests=2, max_model_len=512,
                          simulated_step_s=0.002)  # fmt: skip
    actor = RunnerActor(config, "engine-1")
    await actor.start()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        made = Linked(actor, folder)
        await made.open()
        yield made
        made.calls.close()
        made.socket.close()
        await actor.shutdown()


async def test_replies_come_as_generate_gives_them(linked):
    unheard = await linked.calls.generate(subscribed("a", [3]))
    assert unheard == AttachRequired("engine-1", None, linked.actor.serving.info.fingerprint)
    stream = Subscriber(linked.actor)
    await asyncio.sleep(0)
    assert told(await linked.calls.generate(subscribed("a", [3, 4], max_tokens=5, ignore_eos=True))) == (5, "length")
    ahead = subscribed("b", [3], max_tokens=6, ignore_eos=True)
    linked.actor.begin(ahead)
    await stream.wait_for("b", 6)
    reply = await linked.calls.generate(ahead)
    assert told(reply) == (6, "length") and isinstance(reply, GenerateReply)
    assert list(reply.marks) == ["runner", "scheduled", "first_step"]
    assert len(stream.of("b")) == 6, "it ran once"
    await linked.actor.drain(0)
    assert await linked.calls.generate(subscribed("c", [3])) == NotAdmitted("engine-1", "the engine drains")
    assert not linked.handle.through_ray


async def test_errors_come_with_their_class_and_fields(linked):
    Subscriber(linked.actor)
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequestError, match="maximum context length is 512") as refused:
        await linked.calls.generate(subscribed("long", [1] * 20, max_tokens=500))
    with pytest.raises(InvalidRequestError) as told_directly:
        await linked.actor.generate(subscribed("long", [1] * 20, max_tokens=500))
    expected = told_directly.value
    assert (refused.value.param, refused.value.code, refused.value.message) == (
        expected.param,
        expected.code,
        expected.message,
    )
    running = [
        asyncio.create_task(linked.calls.generate(subscribed(f"r{i}", [i], max_tokens=200, ignore_eos=True)))
        for i in range(4)
    ]
    await until(lambda: linked.actor.serving.live.num_unfinished == 4, 10)
    with pytest.raises(StaleAttemptError):
        await linked.calls.generate(subscribed("r0", [0]))
    with pytest.raises(OverloadedError):
        await linked.calls.generate(subscribed("r5", [5]))
    assert [told(await call) for call in running] == [(200, "length")] * 4
    linked.actor.serving.live.open = None  # what no request should do to a runner
    with pytest.raises(RunnerFailure, match="TypeError"):
        await linked.calls.generate(subscribed("broken", [1]))


async def test_who_goes_is_aborted_also_in_the_moment_of_the_call(linked):
    stream = Subscriber(linked.actor)
    await asyncio.sleep(0)
    call = asyncio.create_task(linked.calls.generate(subscribed("a", [3], max_tokens=400, ignore_eos=True)))
    await stream.wait_for("a", 2)
    call.cancel()
    await until(lambda: not list(linked.actor.serving.live.unfinished()), 10)

    at_once = asyncio.create_task(linked.calls.generate(subscribed("b", [3], max_tokens=400, ignore_eos=True)))
    await asyncio.sleep(0)
    at_once.cancel()  # call and abort arrive in one piece
    with pytest.raises(asyncio.CancelledError):
        await at_once
    await until(lambda: any(delta.finish_reason == "abort" for delta in stream.of("b")), 10)
    assert len(stream.of("b")) < 100
    assert not linked.calls._waiting
    await linked.actor.check_integrity()


async def test_what_came_ahead_is_followed_without_being_sent_again(linked):
    stream = Subscriber(linked.actor)
    await asyncio.sleep(0)
    for name, count in (("a", 3), ("b", 400)):
        linked.actor.begin(subscribed(name, [3], max_tokens=count, ignore_eos=True))
    short, long, unknown = linked.calls.follow([("a", 0), ("b", 0), ("c", 0)])
    assert await unknown == NotBegun() and told(await short) == (3, "length")
    await stream.wait_for("b", 2)
    linked.calls.abort([("b", 0)])
    reply = await long
    assert reply.finish_reason == "abort" and reply.num_tokens < 400 and not linked.calls._waiting
    again, broken = linked.calls.follow([("a", 0)]), RunnerCalls(linked.handle).follow([("a", 0)])
    assert await again[0] == await broken[0] == NotBegun(), "it has been answered; nobody is connected"
    assert not linked.handle.through_ray


@pytest.mark.parametrize("seed", range(2))
async def test_many_calls_and_ends_in_any_order_leave_nothing_behind(linked, seed):
    rng = random.Random(seed)
    Subscriber(linked.actor)
    await asyncio.sleep(0)

    async def one(name: str) -> None:
        made = subscribed(name, [rng.randrange(100)], max_tokens=rng.choice([1, 8, 300]), ignore_eos=True)
        if rng.random() < 0.5:
            linked.actor.begin(made)
        call = asyncio.create_task(linked.calls.generate(made))
        await asyncio.sleep(rng.choice([0, 0.001, 0.02]))
        if rng.random() < 0.5:
            call.cancel()
        await asyncio.wait((call,), timeout=20)
        assert call.done()
        if not call.cancelled() and (error := call.exception()) is not None:
            assert isinstance(error, OverloadedError)

    await asyncio.gather(*(one(f"r{i}") for i in range(40)))
    await until(lambda: not list(linked.actor.serving.live.unfinished()), 10)
    assert not linked.calls._waiting and not linked.socket._running and not linked.actor.serving.requests.ahead._waiting
    await linked.actor.check_integrity()


async def test_a_runner_that_is_gone_is_told_of_once_and_all_calls_end(linked):
    Subscriber(linked.actor)
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(linked.calls.generate(subscribed(f"r{i}", [i], max_tokens=400))) for i in range(2)]
    await until(lambda: linked.actor.serving.live.num_unfinished == 2, 10)
    linked.calls._connection.transport.abort()  # as the kernel does with the sockets of a process that ends
    for call in waiting:
        with pytest.raises(EngineDeadError, match="has ended"):
            await asyncio.wait_for(call, 5)
    assert linked.lost == ["the runner's process has ended"]
    # Whoever asks now learns from Ray what there is.
    assert told(await linked.calls.generate(subscribed("later", [1], max_tokens=3, ignore_eos=True))) == (3, "length")
    assert linked.handle.through_ray == ["later"]


async def test_a_replica_that_leaves_does_not_take_the_closed_connection_for_a_death(linked):
    linked.calls.close()
    await asyncio.sleep(0.05)
    assert not linked.lost


async def test_what_does_not_fit_into_a_frame_goes_through_ray(linked):
    Subscriber(linked.actor)
    await asyncio.sleep(0)
    odd = subscribed("odd", [3], max_tokens=2, ignore_eos=True)
    odd.priority = 1 << 80
    assert encode_request(odd) is None
    assert told(await linked.calls.generate(odd)) == (2, "length")
    long = subscribed("long", [1] * 200_000)
    assert encode_request(long) is None
    with pytest.raises(InvalidRequestError, match="maximum context length"):
        await linked.calls.generate(long)
    assert linked.handle.through_ray == ["odd", "long"]
    cut = subscribed("cut", [3], max_tokens=400)
    cut.priority = 1 << 80
    call = asyncio.create_task(linked.calls.generate(cut))
    await until(lambda: linked.actor.serving.live.num_unfinished == 1, 10)
    call.cancel()
    await until(lambda: not list(linked.actor.serving.live.unfinished()), 10)


@pytest.mark.parametrize(
    "sent", [LENGTH.pack(1 << 30), LENGTH.pack(3) + b"\xc1ab", LENGTH.pack(4) + b"\x93\x01\x02\x03"],
    ids=["too long", "no MessagePack", "no call"],
)  # fmt: skip
async def test_what_no_replica_sends_ends_the_connection_and_nothing_else(linked, sent):
    reader, writer = await asyncio.open_unix_connection(linked.path)
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    Subscriber(linked.actor)
    await asyncio.sleep(0)
    assert told(await linked.calls.generate(subscribed("a", [3], max_tokens=2, ignore_eos=True))) == (2, "length")


async def test_a_frame_may_come_in_pieces(linked):
    Subscriber(linked.actor)
    await asyncio.sleep(0)
    connection = linked.calls._connection
    pieces: list[bytes] = []
    real = connection.transport
    connection.transport = type("Caught", (), {"is_closing": lambda self: False, "write": lambda self, d: pieces.append(d),
                                                "get_write_buffer_size": lambda self: 0})()  # fmt: skip
    call = asyncio.create_task(linked.calls.generate(subscribed("a", [3], max_tokens=2, ignore_eos=True)))
    await until(lambda: pieces, 5)
    connection.transport = real
    for byte in pieces[0]:
        real.write(bytes([byte]))
        await asyncio.sleep(0)
    assert told(await call) == (2, "length")


async def test_a_socket_that_others_can_reach_is_not_used(linked):
    os.chmod(Path(linked.path).parent, 0o777)
    with pytest.raises(UnusableSocketError):
        await RunnerCalls(linked.handle).open(linked.path, linked.lost.append)
    os.chmod(Path(linked.path).parent, 0o700)
    with pytest.raises(UnusableSocketError, match="No such file"):
        await RunnerCalls(linked.handle).open(linked.path + "x", linked.lost.append)
    assert MAX_REQUEST_BYTES < 1 << 21
