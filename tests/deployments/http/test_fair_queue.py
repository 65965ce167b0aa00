"""Work of many clients on few threads: in turns, cheap before dear, and nobody waits for all of what another one has sent."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.http.fair_queue import CHEAP_S, FairQueue, Ticket


class Threads:
    """Threads that work on a queue in a time of their own.

    Attributes:
        done: (client, work, when it was done), in order.
    """

    def __init__(self, count: int = 2) -> None:
        self.now = 0.0
        self.queue: FairQueue[float] = FairQueue(count, lambda: self.now)
        self.running: list[tuple[float, Ticket[float]]] = []
        self.done: list[tuple[str, float, float]] = []

    def add(self, client: str, spent_s: float, expected_s: float | None = None) -> Ticket[float]:
        ticket = self.queue.add(client, spent_s if expected_s is None else expected_s, spent_s)
        self._begin()
        return ticket

    def _begin(self) -> None:
        while (ticket := self.queue.take()) is not None:
            self.running.append((self.now + ticket.work, ticket))

    def step(self) -> bool:
        """Go on until the next work is done; False if nothing runs."""
        if not self.running:
            return False
        self.running.sort(key=lambda running: running[0])
        self.now, ticket = self.running.pop(0)
        self.queue.finish(ticket, ticket.work)
        self.done.append((ticket.client, ticket.work, self.now))
        self._begin()
        return True

    def until_idle(self) -> None:
        while self.step():
            pass


def test_another_client_waits_for_nothing_of_what_one_has_sent():
    threads = Threads()
    for _ in range(50):
        threads.add("flood", 1.0)
    threads.now = 0.3
    threads.add("other", 1.0)
    threads.until_idle()
    assert next(done for done in threads.done if done[0] == "other")[2] == 1.3


def test_several_clients_that_flood_hold_up_another_for_what_runs():
    threads = Threads()
    for number in range(5):
        for _ in range(20):
            threads.add(f"flood {number}", 1.0)
    while threads.now < 4:
        threads.step()
    threads.add("other", 0.01)
    begun = threads.now
    threads.until_idle()
    assert next(done for done in threads.done if done[0] == "other")[2] <= begun + 1.01


def test_work_that_costs_more_than_expected_is_charged():
    threads = Threads(count=1)
    for _ in range(40):
        threads.add("cheater", 1.0, expected_s=0.1)
        threads.add("honest", 0.1)
    while threads.now < 20:
        threads.step()
    seconds = Counter()
    for client, spent_s, _ in threads.done:
        seconds[client] += spent_s
    assert Counter(client for client, *_ in threads.done)["honest"] == 40
    assert seconds["honest"] > 3.9


def test_of_one_client_cheap_work_goes_first_and_dear_work_has_its_turn():
    threads = Threads()
    dear = [threads.add("one", 1.0) for _ in range(3)]
    cheap = threads.add("one", 0.01)
    assert [ticket for _, ticket in threads.running] == [dear[0], cheap]
    threads = Threads(count=1)
    threads.add("one", 1.0)
    dear = threads.add("one", 1.0)
    # Cheap work keeps coming, as much as the thread can do.
    while threads.running[0][1] is not dear:
        threads.add("one", CHEAP_S)
        threads.step()
        assert threads.now < 20


def test_dear_work_has_its_turn_though_ever_new_clients_come():
    threads = Threads(count=1)
    threads.add("one", 1.0)
    dear = threads.add("one", 1.0)
    while threads.running[0][1] is not dear:
        threads.add(f"new at {threads.now}", CHEAP_S)
        threads.step()
        assert threads.now < 20


def test_who_comes_late_has_saved_up_nothing():
    threads = Threads(count=1)
    for _ in range(40):
        threads.add("early", 1.0)
    while threads.now < 20:
        threads.step()
    for _ in range(20):
        threads.add("late", 1.0)
    threads.until_idle()
    order = [client for client, *_ in threads.done[21:41]]
    assert order.count("early") >= 9


def test_what_nobody_wants_any_more_is_not_done():
    threads = Threads(count=1)
    running, waiting = threads.add("one", 1.0), threads.add("one", 1.0)
    assert threads.queue.discard(waiting)
    assert not threads.queue.discard(waiting)
    assert not threads.queue.discard(running)
    threads.until_idle()
    assert len(threads.done) == 1
    assert threads.queue.is_idle


WORK = st.tuples(
    st.sampled_from("abcd"),
    st.sampled_from([0.001, 0.04, 0.5, 3.0]),
    st.sampled_from([0.001, 0.04, 0.5, 3.0]),
    st.booleans(),
)


@settings(deadline=None)
@given(arrivals=st.lists(WORK, max_size=40), count=st.integers(1, 3))
def test_all_that_is_wanted_is_done_once_and_threads_are_never_all_idle(arrivals, count):
    threads = Threads(count)
    wanted: Counter[str] = Counter()
    for client, spent_s, expected_s, leaves in arrivals:
        ticket = threads.add(client, spent_s, expected_s)
        wanted[client] += not (leaves and threads.queue.discard(ticket))
        assert threads.running
        assert len(threads.running) <= count
        if spent_s > 1:
            threads.step()
    threads.until_idle()
    assert Counter(client for client, *_ in threads.done) == +wanted
    assert threads.queue.is_idle
