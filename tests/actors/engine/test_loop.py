"""The thread that owns the engine: messages go in, deltas come out, death is told to everybody."""

from __future__ import annotations

import queue
import time

import pytest

from actors.engine.loop import EngineLoop
from cluster.errors import EngineDeadError, InvalidRequestError
from tests.engines import answer, make_engine, request


class Harness:
    def __init__(self, engine) -> None:
        self.engine = engine
        self.published: queue.Queue = queue.Queue()
        self.deaths: list[BaseException] = []
        self.loop = EngineLoop(engine, self.published.put, self.deaths.append)

    def collect(self, *names: str) -> dict:
        """Deltas of the requests until each has finished."""
        deltas: dict[str, list] = {name: [] for name in names}
        while not all(d and d[-1].finish_reason for d in deltas.values()):
            for delta in self.published.get(timeout=20):
                deltas[delta.request_id].append(delta)
        return deltas


@pytest.fixture
def harness(tiny_model):
    made = Harness(make_engine(tiny_model))
    yield made
    made.loop.close()


def test_answers_equal_those_of_the_engine_driven_by_hand(tiny_model, harness):
    requests = [request("a", [3, 4, 5]), request("b", [9] * 30, temperature=1.0, seed=2)]
    engine = make_engine(tiny_model)
    expected = {name: answer(deltas) for name, deltas in engine.generate(requests).items()}
    engine.close()
    for one in requests:
        harness.loop.submit(one).result(10)
    assert {name: answer(deltas) for name, deltas in harness.collect("a", "b").items()} == expected


def test_the_last_token_comes_without_a_next_request(harness):
    harness.loop.submit(request("a", [3, 4, 5], max_tokens=2)).result(10)
    assert len(harness.collect("a")["a"]) == 2
    assert harness.loop.seconds_in_step() == 0


def test_an_idle_engine_is_checked_once_after_it_had_work(tiny_model, monkeypatch):
    engine = make_engine(tiny_model)
    checks: list[float] = []
    monkeypatch.setattr(engine, "check_integrity", lambda: checks.append(time.monotonic()))
    harness = Harness(engine)

    def look_on(seconds: float) -> int:
        """How often it was checked meanwhile, though others ask it things."""
        before, until = len(checks), time.monotonic() + seconds
        while time.monotonic() < until:
            harness.loop.call(lambda engine: None).result(10)
            time.sleep(0.2)
        return len(checks) - before

    for name in "ab":
        harness.loop.submit(request(name, [3, 4, 5], max_tokens=2)).result(10)
        harness.collect(name)
        assert look_on(1.0) == 1
        assert look_on(1.0) == 0
    # Steps that say nothing are work, too.
    monkeypatch.setattr(engine, "has_work", lambda: True)
    harness.loop.call(lambda engine: None).result(10)
    monkeypatch.setattr(engine, "has_work", lambda: False)
    assert look_on(1.0) == 1
    harness.loop.close()


def test_the_first_step_after_a_rest_makes_the_queue_no_older_than_itself(harness):
    harness.loop.submit(request("a", [3, 4, 5], max_tokens=2)).result(10)
    harness.collect("a")
    time.sleep(1.0)
    forward, ages = harness.engine.executor.model.forward, []

    def slow(rows, kv_cache):
        time.sleep(0.05)
        ages.append(harness.loop.queue_age_s)
        return forward(rows, kv_cache)

    harness.engine.executor.model.forward = slow
    harness.loop.submit(request("b", [3, 4, 5], max_tokens=2)).result(10)
    harness.collect("b")
    assert 0.04 < ages[0] < 0.5, "as old as the step, not as the rest"


def test_a_refused_request_fails_its_own_future_only(harness):
    with pytest.raises(InvalidRequestError, match="token id 999 is outside the vocabulary, 0 to 127"):
        harness.loop.submit(request("bad", [999])).result(10)
    harness.loop.submit(request("good", [1])).result(10)
    assert harness.collect("good")["good"][-1].finish_reason == "length"
    harness.loop.call(lambda engine: engine.check_integrity()).result(10)


def test_abort_is_published_and_frees_the_blocks(harness):
    harness.loop.submit(request("a", [3, 4, 5], max_tokens=400)).result(10)
    harness.published.get(timeout=10)
    harness.loop.abort("a", 0).result(10)
    assert harness.collect("a")["a"][-1].finish_reason == "abort"
    for _ in range(2):  # the slot's marker leaves within two steps
        harness.loop.call(lambda engine: None).result(10)
    available = harness.loop.call(lambda engine: engine.scheduler.kv_cache.num_available).result(10)
    assert available == harness.engine.info.num_blocks


def test_a_failed_step_ends_the_loop_and_every_waiter(harness):
    def fail(rows, kv_cache):
        raise RuntimeError("device fault")

    harness.engine.executor.model.forward = fail
    harness.loop.submit(request("a", [1])).result(10)
    deadline = time.monotonic() + 10
    while not harness.deaths and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "device fault" in str(harness.deaths[0])
    with pytest.raises(EngineDeadError, match="device fault"):
        harness.loop.submit(request("b", [1])).result(10)


def test_nothing_is_taken_after_close(tiny_model):
    harness = Harness(make_engine(tiny_model))
    harness.loop.close()
    with pytest.raises(EngineDeadError, match="shut down"):
        harness.loop.submit(request("a", [1])).result(10)


def test_an_engine_that_must_not_go_on_ends_idle_or_not(harness, tiny_model):
    damaged = EngineDeadError("its weights are damaged")
    harness.loop.fail(damaged)  # nothing else wakes it
    harness.loop._thread.join(20)
    assert harness.deaths == [damaged] and harness.loop.error is damaged
    busy = Harness(make_engine(tiny_model))
    pending = busy.loop.submit(request("a", [1], max_tokens=60, ignore_eos=True))
    busy.loop.fail(damaged)
    busy.loop._thread.join(20)
    assert busy.deaths == [damaged] and pending.done()
    with pytest.raises(EngineDeadError, match="damaged"):
        busy.loop.submit(request("b", [1])).result(10)
