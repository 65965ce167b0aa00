"""Within a priority tenants take turns; one tenant alone is served first come, first served."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.scheduling.sequence import Sequence
from actors.scheduling.waiting_queue import WaitingQueue
from cluster.errors import OverloadedError
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from tests.actors.scheduling.test_scheduler import Device, admissions, make_scheduler, request


class Arrivals:
    """A queue, and requests that come to it."""

    def __init__(self) -> None:
        self.queue = WaitingQueue()
        self.count = 0

    def add(
        self, tenant: str, priority: int = 0, output: list[int] | None = None, came_at: float | None = None
    ) -> Sequence:
        asked = EngineRequest(
            str(self.count), [1, 2], SamplingParams(), output_token_ids=output or [], priority=priority, tenant=tenant
        )
        sequence = Sequence(asked, self.count, self.count if came_at is None else came_at)
        self.count += 1
        self.queue.add(sequence)
        return sequence

    def admit(self) -> Sequence:
        first = self.queue[0]
        self.queue.admit(first)
        return first

    def admit_all(self) -> list[str]:
        return [self.admit().request.tenant for _ in range(len(self.queue))]


EVENTS = st.lists(st.sampled_from(["a", "b", "c", "admit", "give up"]), max_size=60)


def test_a_flood_lets_one_of_the_other_key_pass_in_each_round():
    arrivals = Arrivals()
    for tenant in "aaaaa" + "bb":
        arrivals.add(tenant)
    assert "".join(arrivals.admit_all()) == "abab" + "aaa"
    for tenant in "aaaa":
        arrivals.add(tenant)
    assert "".join(arrivals.admit().request.tenant for _ in range(2)) == "aa"
    arrivals.add("b")
    assert "".join(arrivals.admit_all()) == "baa", "who comes later waits for one round, not for the whole flood"


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 12), min_size=2), st.data())
def test_from_any_moment_on_tenants_with_a_backlog_are_served_alike(backlog, data):
    """One of them may have had its turn of that round already and another one not, so they differ by two at most."""
    arrivals = Arrivals()
    order = data.draw(st.permutations([tenant for tenant, count in backlog.items() for _ in range(count)]))
    for tenant in order:
        arrivals.add(tenant)
        if data.draw(st.integers(0, 3)) == 0:
            arrivals.admit()
    waiting = Counter(s.request.tenant for s in arrivals.queue)
    admitted = Counter(dict.fromkeys(waiting, 0))
    while waiting and min(waiting.values()) > 0:
        assert max(admitted.values()) - min(admitted.values()) <= 2
        tenant = arrivals.admit().request.tenant
        admitted[tenant] += 1
        waiting[tenant] -= 1


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_from_the_first_round_on_nobody_is_two_ahead(tenants):
    """All arrive before the first is admitted: after any number of admissions those who still wait differ by one at most."""
    arrivals = Arrivals()
    for tenant in tenants:
        arrivals.add(tenant)
    waiting, admitted = Counter(tenants), Counter(dict.fromkeys(tenants, 0))
    for tenant in arrivals.admit_all():
        admitted[tenant] += 1
        waiting[tenant] -= 1
        served = [admitted[other] for other in waiting if waiting[other]]
        if served:
            assert max(served) - min(served) <= 1
            assert max(admitted.values()) - min(served) <= 1


@settings(deadline=None)
@given(EVENTS, st.booleans())
def test_the_order_within_a_tenant_is_that_of_arrival_and_orders_stay(events, single):
    arrivals = Arrivals()
    for event in events:
        if event == "admit" and len(arrivals.queue):
            first = arrivals.admit()
            assert all(s.arrival > first.arrival for s in arrivals.queue if s.request.tenant == first.request.tenant)
            assert not single or all(s.arrival > first.arrival for s in arrivals.queue)
        elif event == "give up" and len(arrivals.queue):
            arrivals.queue.give_up(arrivals.queue[len(arrivals.queue) // 2])
        elif event in "abc":
            arrivals.add("one" if single else event)
        orders = [s.order for s in arrivals.queue]
        assert orders == sorted(orders)
    count = Counter(s.request.tenant for s in arrivals.queue)
    assert all(arrivals.queue.num_of(tenant) == count[tenant] for tenant in ("a", "b", "c", "one"))


LOST = st.tuples(st.sampled_from("ab"), st.integers(0, 1), st.floats(-5, 5))


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["a", "b", "admit", "give up"]), LOST), max_size=40))
def test_who_lost_its_engine_stands_before_all_who_came_later_and_takes_no_turn_of_others(events):
    arrivals = Arrivals()
    for event in events:
        before = list(arrivals.queue)
        if event == "admit" and before:
            first = arrivals.admit()
            equals = [s for s in arrivals.queue if s.request.priority == first.request.priority]
            assert all(s.seniority > first.seniority for s in equals if s.request.tenant == first.request.tenant)
        elif event == "give up" and before:
            arrivals.queue.give_up(before[len(before) // 2])
        elif event in ("a", "b"):
            arrivals.add(event)
        elif isinstance(event, tuple):
            tenant, priority, earlier = event
            turns = {s: s.turn for s in before}
            lost = arrivals.add(tenant, priority, came_at=arrivals.count - earlier)
            others = [s for s in before if (s.request.tenant, s.request.priority) != (tenant, priority)]
            assert [s for s in arrivals.queue if s in others] == others
            assert all(s.turn == turns[s] for s in others)
            own = [s for s in arrivals.queue if s not in others]
            assert lost in own and [s.seniority for s in own] == sorted(s.seniority for s in own)
            assert len({s.turn for s in own}) == len(own), "each has a turn of its own"
        assert [s.order for s in arrivals.queue] == sorted(s.order for s in arrivals.queue)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["b", "c", "admit"]), max_size=80))
def test_nobody_waits_for_more_than_one_request_of_each_other_tenant_in_a_round(events):
    """However many keep coming: the i-th request of a tenant waits for i + 1 of each other one at the most."""
    arrivals = Arrivals()
    for tenant in "bbbccc":
        arrivals.add(tenant)
    mine = [arrivals.add("a") for _ in range(3)]
    passed: Counter[str] = Counter()
    for event in [*events, *["b", "c", "admit"] * 30]:
        if event != "admit":
            arrivals.add(event)
            continue
        if not arrivals.queue:
            continue
        first = arrivals.admit()
        if first in mine:
            position = mine.index(first)
            assert all(passed[other] <= position + 1 for other in "bc")
        passed[first.request.tenant] += 1


def test_a_tenant_with_one_request_at_a_time_gets_every_other_turn_and_no_more():
    arrivals = Arrivals()
    for _ in range(6):
        arrivals.add("backlog")
    served = []
    arrivals.add("single")
    for _ in range(8):
        served.append(arrivals.admit().request.tenant)
        if served[-1] == "single":
            arrivals.add("single")
    assert served == ["backlog", "single"] * 4


def test_turns_that_were_given_up_are_not_waited_for():
    arrivals = Arrivals()
    flood = [arrivals.add("a") for _ in range(10)]
    for _ in range(5):
        arrivals.add("b")
    for sequence in flood:
        arrivals.queue.give_up(sequence)
    arrivals.admit()
    arrivals.add("a")
    assert "".join(arrivals.admit_all()) == "babbb"


def test_priorities_and_answers_in_the_middle_go_before_turns():
    arrivals = Arrivals()
    for _ in range(3):
        arrivals.add("a", priority=1)
    arrivals.add("b", priority=1)
    arrivals.add("a", priority=1, output=[7])
    arrivals.add("a", priority=0)
    served = [arrivals.admit() for _ in range(6)]
    assert [(s.request.tenant, s.request.priority, s.is_to_begin) for s in served] == [
        ("a", 0, True), ("a", 1, False), ("a", 1, True), ("b", 1, True), ("a", 1, True), ("a", 1, True),
    ]  # fmt: skip


def test_who_was_preempted_before_its_first_token_has_had_its_turn():
    arrivals = Arrivals()
    for tenant in "aab":
        arrivals.add(tenant)
    served = [arrivals.admit() for _ in range(3)]
    arrivals.add("b")
    arrivals.queue.put_back(served[2])
    arrivals.queue.put_back(served[1])
    assert [arrivals.admit() for _ in range(2)] == sorted(served[1:], key=lambda s: s.arrival)


def test_nothing_is_kept_of_priorities_and_tenants_of_which_nobody_waits():
    arrivals = Arrivals()
    for priority in range(50):
        arrivals.add(f"tenant {priority}", priority)
    arrivals.admit_all()
    assert not arrivals.queue._rounds and not arrivals.queue._num_of


@settings(max_examples=30, deadline=None)
@given(slots=st.integers(1, 3), lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_a_flood_of_one_key_does_not_keep_the_other_waiting_in_the_scheduler(slots, lengths):
    scheduler = make_scheduler(num_blocks=24, max_num_seqs=slots, oldest_first_every=1000)
    device = Device(scheduler)
    for number in range(12):
        prompt = [100 + number] * lengths[number % len(lengths)]
        scheduler.add_request(request(f"flood-{number}", prompt, 2, tenant="flood"))
    for number, length in enumerate(lengths):
        scheduler.add_request(request(f"other-{number}", [number] * length, 2, tenant="other"))
    device.drain()
    order = admissions(device.plans)
    assert all(order.index(f"other-{number}") <= 2 * number + 1 for number in range(len(lengths)))


def test_one_tenant_holds_its_share_of_the_queue_and_no_more():
    scheduler = make_scheduler(max_num_seqs=1, max_queued_requests=8, max_queue_share=0.5)
    device = Device(scheduler)
    scheduler.add_request(request("running", tenant="flood"))
    device.step()
    for number in range(4):
        scheduler.add_request(request(f"flood-{number}", tenant="flood"))
    with pytest.raises(OverloadedError, match=r"4 requests of this API key are waiting.*share of the queue.*4 of 8"):
        scheduler.add_request(request("over", tenant="flood"))
    for number in range(4):
        scheduler.add_request(request(f"other-{number}", tenant=f"other-{number % 2}"))
    with pytest.raises(OverloadedError, match="8 requests are waiting"):
        scheduler.add_request(request("full", tenant="other-0"))
    device.tokens["begun elsewhere"] = [1]
    scheduler.add_request(request("begun elsewhere", tenant="flood", attempt=1, output_token_ids=[1]))
    with pytest.raises(OverloadedError, match=r"9 requests are waiting"):
        scheduler.add_request(request("begun", tenant="other-0", attempt=1, output_token_ids=[1]))
    device.drain()
    scheduler.check_integrity()


def test_answers_in_the_middle_of_one_tenant_leave_room_for_those_of_others():
    scheduler = make_scheduler(max_num_seqs=2, max_queued_requests=8, max_queue_share=0.5)
    device = Device(scheduler)
    for number in range(2):
        scheduler.add_request(request(f"running-{number}", max_tokens=9))
    device.step()
    for number in range(6):
        device.tokens[f"flood-{number}"] = [1]
        scheduler.add_request(request(f"flood-{number}", tenant="flood", attempt=1, output_token_ids=[1]))
    with pytest.raises(OverloadedError, match="6 requests of this API key are waiting"):
        scheduler.add_request(request("over", tenant="flood", attempt=1, output_token_ids=[1]))
    device.tokens["other"] = [1]
    scheduler.add_request(request("other", tenant="other", attempt=1, output_token_ids=[1]))
    scheduler.add_request(request("new", tenant="other"))
    device.drain()


def test_requests_without_a_tenant_may_fill_the_queue():
    scheduler = make_scheduler(max_num_seqs=1, max_queued_requests=8, max_queue_share=0.5)
    for number in range(9):  # the first finds a free slot in the next step
        scheduler.add_request(request(str(number)))
    with pytest.raises(OverloadedError, match="9 requests are waiting"):
        scheduler.add_request(request("over"))


def test_a_share_is_one_request_at_least():
    scheduler = make_scheduler(max_num_seqs=1, max_queued_requests=2, max_queue_share=0.1)
    scheduler.add_request(request("in the free slot", tenant="a"))
    scheduler.add_request(request("one", tenant="a"))
    with pytest.raises(OverloadedError, match="1 of 2"):
        scheduler.add_request(request("two", tenant="a"))
