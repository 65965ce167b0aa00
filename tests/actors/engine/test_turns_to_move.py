"""Requests of two ingresses in one full engine: who asks first does not move those that came last."""

from __future__ import annotations

import pytest

from actors.scheduling.turns_to_move import LEFT_FOR_S, TurnsToMove
from tests.engines import make_engine, request, write_tiny_model


def test_a_place_is_left_to_a_request_for_a_time_and_to_nobody_who_is_gone():
    turns, key = TurnsToMove(), ("r", 0)
    assert turns.is_left_to(key, 10.0)
    assert turns.is_left_to(key, 10.0 + LEFT_FOR_S - 0.01)
    assert not turns.is_left_to(key, 10.0 + LEFT_FOR_S)
    turns.keep([key])
    assert not turns.is_left_to(key, 11.0)
    turns.keep([])
    assert turns.is_left_to(key, 12.0)


class Clock:
    """Stands still until it is set."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def now(self) -> float:
        return self.seconds


@pytest.mark.parametrize("is_fetched", [True, False])
def test_an_ingress_gets_those_that_come_before_the_others(tmp_path, is_fetched):
    engine = make_engine(write_tiny_model(tmp_path))
    engine.clock = clock = Clock(100.0)
    for number, subscriber in enumerate(["one", "other", "one", "other", "other"]):
        entry = request(str(number), [number + 1] * 4)
        entry.subscriber = subscriber
        engine.add_request(entry)
    waited_s = {(str(number), 0): 5.0 for number in range(5)}

    def moved(subscriber, count):
        return [name for name, _ in engine.requests_to_move(subscriber, count, 1000, waited_s)]

    assert moved("other", 1) == []
    assert moved("other", 2) == ["1"]
    assert moved("one", 3) == ["0", "2"]
    if is_fetched:
        for name in "02":
            engine.abort(name)
    else:
        clock.seconds += LEFT_FOR_S
    # What comes next has its own time from now on.
    assert moved("other", 2) == (["1", "3"] if is_fetched else ["1"])
    for name in "01234":
        engine.abort(name)
    engine.close()
