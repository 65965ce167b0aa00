"""How long requests wait for their slot."""

from __future__ import annotations

from actors.engine.stats.queue_times import QueueTimes
from cluster.observability.vllm_metrics import REQUEST_BUCKETS_S


def test_a_request_waits_once_from_coming_to_its_slot():
    times = QueueTimes()
    assert times.found == ((0,) * (len(REQUEST_BUCKETS_S) + 1), 0.0)
    times.came("a", 10.0)
    times.came("b", 10.0)
    times.came("c", 11.0)
    times.begun("a", 10.25)
    times.gone("b")
    times.begun("b", 99.0)
    before = times.found
    times.begun("c", 13.25)
    times.begun("c", 99.0)  # after a preemption
    counts, total = times.found
    assert total == 2.5 and sum(counts) == 2 and counts[0] == 1 and counts[REQUEST_BUCKETS_S.index(2.5)] == 1
    assert sum(before[0]) == 1, "what was read does not change"


def test_waits_are_told_once_and_those_nobody_asks_for_do_not_pile_up():
    times = QueueTimes()
    for number in range(3 * 4096):
        times.came(str(number), number)
        times.begun(str(number), number + 0.5)
    newest = str(3 * 4096 - 1)
    assert (times.take(newest), times.take(newest), times.take("0")) == (0.5, None, None)
    assert len(times._waited) <= 4096
