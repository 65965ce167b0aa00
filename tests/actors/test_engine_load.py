"""What streams say of an engine that takes, computes and queues requests is so."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest

from actors import delta_stream
from actors.scheduling.queue_state import QueueState
from cluster.errors import InvalidRequestError
from cluster.outputs import EngineLoad, TokenDelta
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from tests.actors.idle_loop import IdleLoop, serve
from tests.actors.subscriber import Subscriber, slow_down, subscribed
from tests.waiting import until


async def test_streams_say_how_much_the_engine_takes_when_it_has_changed(actor):
    stream = Subscriber(actor)

    def told() -> list[EngineLoad]:
        return stream.loads()

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


async def test_streams_say_with_how_many_tokens_the_engine_has_to_do(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)

    def told() -> list[int]:
        return [d.num_tokens for message in stream.messages for d in message if isinstance(d, EngineLoad)]

    slow_down(actor, 0.004)  # so that beats come while it writes
    calls = [asyncio.create_task(actor.generate(subscribed("a", [1, 2, 3], max_tokens=400, ignore_eos=True)))]
    # As it writes, without a request that comes or ends.
    await until(lambda: any(3 < one < 400 for one in told()[2:]) and len(stream.messages) > 40, 10)
    calls += [asyncio.create_task(actor.generate(subscribed(name, [1] * 50, max_tokens=400))) for name in "bcdef"]
    await until(lambda: told()[-1] > 250, 5)  # one of them waits
    for call in calls:
        call.cancel()
    await until(lambda: told()[-1] == 0, 10)
    # Not in each step's message: a step is a few milliseconds.
    loads = stream.loads()
    unasked = sum(before.room == after.room for before, after in itertools.pairwise(loads))
    # Beats, and as many again if steps were long.
    assert unasked <= 2 * (loads[-1].sampled_at - loads[0].sampled_at) / delta_stream.HEARTBEAT_S + 2
    assert not actor.serving.live.num_unfinished


async def test_streams_say_who_waits_and_what_the_cache_holds(actor):
    """Also while a step takes long: who has come meanwhile waits, though the engine's thread knows nothing of it."""
    stream = Subscriber(actor)
    await until(lambda: stream.loads(), 5)
    warmed_up = stream.loads()[0]
    began, release = threading.Event(), threading.Event()
    model = actor.serving.engine.executor.model
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
    await until(lambda: stream.loads()[-1].num_waiting >= 6, 5)
    waiting = stream.loads()[-1]
    assert waiting.num_waiting * 40 == waiting.waiting_tokens <= waiting.uncomputed_tokens <= waiting.num_tokens
    await until(lambda: stream.loads()[-1].longest_wait_s > 0.4, 5)
    told = stream.loads()[-1]
    # Of before the step, however often it is told: the engine's thread has looked at nothing since.
    assert told.sampled_at <= in_step_since and told.told_after_s > 0.4
    num_told = len(stream.loads())
    release.set()
    await until(lambda: stream.loads()[-1].sampled_at > in_step_since, 5)
    assert len(stream.loads()) > num_told
    # In the queue itself, as four of the seven have slots. The actor may be told a little later that they were taken.
    await until(lambda: ((now := stream.loads()[-1]).num_running, now.num_waiting, now.num_arrived) == (4, 3, 7), 5)
    full = stream.loads()[-1]
    assert full.waiting_tokens == 120 and full.running_tokens >= 160
    assert full.longest_wait_s > 0.4
    assert 0 < full.free_kv_tokens < full.kv_tokens == 64 * 16
    await asyncio.gather(*calls[1:])
    calls[0].cancel()
    await until(lambda: stream.loads()[-1].num_tokens == 0 and stream.loads()[-1].num_running == 0, 10)
    idle = stream.loads()[-1]
    assert (idle.num_waiting, idle.waiting_tokens, idle.uncomputed_tokens, idle.longest_wait_s) == (0, 0, 0, 0.0)
    await until(lambda: stream.loads()[-1].told_after_s == 0.0, 5)  # nothing to do: it is as it was seen last
    assert abs(stream.loads()[-1].sampled_at - time.time()) < 5
    assert idle.free_kv_tokens == idle.kv_tokens
    assert idle.num_prompt_tokens - warmed_up.num_prompt_tokens == 280
    num_cached = idle.num_cached_prompt_tokens - warmed_up.num_cached_prompt_tokens
    assert 0 < num_cached <= 6 * 32
    assert idle.num_preemptions or idle.num_prefill_tokens - warmed_up.num_prefill_tokens == 280 - num_cached
    assert idle.num_steps - warmed_up.num_steps > 40
    stats = await actor.check_integrity()
    assert stats["num_requests_arrived"] == 7 and stats["num_kv_tokens_free"] == 64 * 16
    assert idle.num_generated_tokens <= stats["num_generated_tokens"]
    assert not len(actor.serving.arrivals)


@pytest.fixture
async def full():
    """An engine with two open places, and two requests of one subscriber that wait."""
    queue = QueueState(
        open_places=2, num_movable={"one": 2}, oldest={"one": ("a", 0)}, num_waiting=2, waiting_tokens=50
    )
    made = serve(IdleLoop(queue), max_num_seqs=4, max_queued_requests=6)
    yield made
    await made.close()


def ask(name: str, subscriber: str = "one", priority: int = 0) -> EngineRequest:
    return EngineRequest(name, [1] * 10, SamplingParams(), subscriber=subscriber, priority=priority)


async def test_who_is_on_the_way_to_the_engine_has_its_place_already(full):
    full.subscriptions.open("one", delta_stream.DeltaStream(), list)
    loads = [full.loads.now()("one")]
    for name in "xyz":
        full.requests.begin(ask(name, priority=-1))
        loads.append(full.loads.now()("one"))
    assert [load.free for load in loads] == [10, 9, 8, 7]
    assert [load.open_places for load in loads] == [2, 1, 0, 0]
    assert [load.num_waiting for load in loads] == [2, 3, 4, 5]
    assert [load.waiting_tokens for load in loads] == [50, 60, 70, 80]
    assert [load.line_length for load in loads] == [2, 2, 2, 3], "the third finds no place"
    assert [load.line_priority for load in loads] == [0, 0, 0, -1]


async def test_each_subscriber_is_told_of_its_own_requests_that_could_move(full):
    full.live.open(ask("a"), asyncio.get_running_loop().create_future())
    await asyncio.sleep(0.02)
    one, other = map(full.loads.now(), ("one", "other"))
    assert one.num_movable == 2 and one.oldest_wait_s >= 0.02 and other.num_movable == 0
    assert one._replace(num_movable=0, oldest_wait_s=other.oldest_wait_s) == other


async def test_an_engine_that_leaves_has_no_open_places(full):
    leaving = asyncio.create_task(full.handover.drain(9))
    await asyncio.sleep(0)
    assert full.loads.now()("one").open_places == 0
    leaving.cancel()
