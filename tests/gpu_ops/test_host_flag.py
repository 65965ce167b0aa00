"""Host cells: stop flags and step events, shared by two threads."""

from __future__ import annotations

import threading
import time

import paddle
import pytest

from gpu_ops.host_flag import event_record, event_wait, get_stop, set_stop
from tests.gpu_ops.slots.random_slots import tensor


def test_set_stop_and_get_stop_make_the_round_trip():
    flag = tensor([False], "bool")
    for value in (True, True, False, True):
        set_stop(flag, value)
        assert get_stop(flag) is value
        assert bool(flag.numpy()[0]) is value


def test_set_stop_writes_the_cell_it_was_given():
    flags = [tensor([False], "bool") for _ in range(3)]
    set_stop(flags[1], True)
    assert [get_stop(flag) for flag in flags] == [False, True, False]
    assert flags[1].place.is_cpu_place()


def test_set_stop_is_seen_by_another_thread():
    request, answer = tensor([False], "bool"), tensor([False], "bool")
    rounds = 50

    def responder():
        for expected in [True, False] * rounds:
            while get_stop(request) is not expected:
                pass
            set_stop(answer, expected)

    thread = threading.Thread(target=responder, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    for value in [True, False] * rounds:
        set_stop(request, value)
        while get_stop(answer) is not value:
            assert time.monotonic() < deadline
    thread.join(10)
    assert not thread.is_alive()


def test_set_stop_refuses_a_cell_of_another_type():
    with pytest.raises(Exception, match="flag"):
        set_stop(tensor([0], "int64"), True)


def test_event_wait_returns_at_once_when_already_reached():
    cell = tensor([0], "int64")
    event_record(cell, 7)
    started = time.monotonic()
    for ticket in (0, 3, 7):
        event_wait(cell, ticket)
    assert time.monotonic() - started < 1


def test_event_wait_wakes_up_when_another_thread_records():
    cell, reached = tensor([0], "int64"), []

    def waiter():
        event_wait(cell, 2)
        reached.append(int(cell.numpy()[0]))

    thread = threading.Thread(target=waiter, daemon=True)
    thread.start()
    event_record(cell, 1)
    time.sleep(0.05)
    assert not reached, "an earlier ticket must not wake a later one's waiter"
    event_record(cell, 2)
    thread.join(10)
    assert reached == [2]


def test_event_wait_releases_the_interpreter_lock():
    cell = tensor([0], "int64")
    counted = []

    def spinner():
        # Runs only while the main thread waits without the lock, and is what ends that wait.
        total = 0
        for number in range(100_000):
            total += number
        counted.append(total)
        event_record(cell, 1)

    thread = threading.Thread(target=spinner, daemon=True)
    thread.start()
    event_wait(cell, 1)
    assert counted == [sum(range(100_000))]
    thread.join(10)


def test_two_waiters_of_two_cells_do_not_disturb_each_other():
    cells = [tensor([0], "int64") for _ in range(2)]
    order: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: (event_wait(cells[i], 1), order.append(i)), daemon=True) for i in range(2)
    ]
    for thread in threads:
        thread.start()
    event_record(cells[1], 1)
    threads[1].join(10)
    assert order == [1]
    event_record(cells[0], 1)
    threads[0].join(10)
    assert order == [1, 0]


def test_event_record_refuses_a_cell_of_another_type():
    with pytest.raises(Exception, match="cell"):
        event_record(paddle.zeros([1], "int32"), 1)
