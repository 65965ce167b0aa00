"""Who has just come waits for those who are about to move, and not for long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from deployments.routing.waiting.arrival_line import HELD_FOR_S, ArrivalLine
from tests.jumping_loop import JumpingLoop


class Ingress:
    """What ``must_wait`` says is set; who goes takes it away, as it counts at once.

    Attributes:
        room: requests that may go; those of a priority below ``urgent`` always.
        went: (name, when) in order.
    """

    def __init__(self) -> None:
        self.room, self.urgent, self.went = 0, -9, []
        self.loop = asyncio.get_running_loop()
        self.line = ArrivalLine(lambda priority: priority >= self.urgent and self.room <= 0, self.go)

    def come(self, name: str, priority: int = 0) -> SimpleNamespace:
        entry = SimpleNamespace(request_id=name, priority=priority)
        submission = SimpleNamespace(entry=entry, submitted_at=self.loop.time())
        self.line.come(submission)
        return submission

    def go(self, submission) -> None:
        self.room -= 1
        self.went.append((submission.entry.request_id, round(self.loop.time() - submission.submitted_at, 3)))


def run(work) -> None:
    loop = JumpingLoop()
    try:
        loop.run_until_complete(work())
    finally:
        loop.close()


def test_who_comes_goes_in_order_as_far_as_there_is_room_and_at_the_latest_after_half_a_second():
    async def work() -> None:
        ingress = Ingress()
        for name in "abc":
            ingress.come(name)
        await asyncio.sleep(0.1)
        assert not ingress.went
        ingress.room = 1
        ingress.line.changed()
        assert ingress.went == [("a", 0.1)]
        ingress.room = 1
        ingress.come("d")  # though there is room: it is for who came before
        assert len(ingress.line) == 3
        ingress.line.changed()
        assert [name for name, _ in ingress.went] == ["a", "b"]
        await asyncio.sleep(10)
        assert ingress.went[2:] == [("c", HELD_FOR_S), ("d", HELD_FOR_S)]
        assert not len(ingress.line)

    run(work)


def test_who_is_more_urgent_than_all_who_wait_here_does_not_stand_behind_them():
    async def work() -> None:
        ingress = Ingress()
        ingress.come("a")
        ingress.come("less", 1)
        ingress.urgent = 0
        ingress.come("urgent", -1)
        assert ingress.went == [("urgent", 0.0)]
        ingress.urgent = -9
        ingress.come("urgent too", -1)
        gone = ingress.come("b")
        ingress.line.forget(gone)
        ingress.line.forget(gone)
        for _ in range(3):
            ingress.room = 1
            ingress.line.changed()
        assert [name for name, _ in ingress.went] == ["urgent", "urgent too", "a", "less"]

    run(work)


def test_a_word_of_an_engine_is_one_question_whoever_is_held():
    async def work() -> None:
        asked = []
        line = ArrivalLine(lambda priority: not asked.append(priority), lambda submission: None)
        for number in range(100):
            entry = SimpleNamespace(request_id=str(number), priority=number % 3)
            line.come(SimpleNamespace(entry=entry))
        asked.clear()
        line.changed()
        assert asked == [0], "the most urgent one must wait, and so must all behind it"
        assert len(line) == 100

    run(work)
