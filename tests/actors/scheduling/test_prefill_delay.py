"""Prompts wait for others to be computed with, for a few steps, where others are likely to come and nobody but them waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.scheduling.prefill_delay import PrefillDelay
from tests.actors.scheduling.test_scheduler import Device, make_scheduler, request

STEPS = 4


def busy(delay: int = STEPS, every: int = 2, **settings) -> tuple[Device, int]:
    """A device with an answer of which more comes, and eight requests that have come, one every so many steps."""
    scheduler = make_scheduler(num_blocks=80, max_num_seqs=settings.pop("slots", 16), prefill_delay_steps=delay)
    device = Device(scheduler, patience=delay)
    scheduler.add_request(request("answer", 4, 1000))
    for index in range(8):
        for _ in range(every):
            device.step()
        scheduler.add_request(request(f"before-{index}", 4, 1))
    while len(scheduler.running) > 1 or scheduler.waiting:
        device.step()
    return device, len(device.plans)


def computed(device: Device, name: str) -> int:
    """The step that computed a prompt."""
    return next(plan.step for plan in device.plans if name in plan.request_ids.values())


def test_prompts_that_come_one_by_one_are_computed_together():
    device, now = busy()
    for name in "abc":
        device.scheduler.add_request(request(name, 4, 8))
        device.step()
    for _ in range(STEPS):
        device.step()
    # The first one waits for four steps, the others for those that are left of them.
    assert [computed(device, name) for name in "abc"] == [now + STEPS] * 3
    device.drain()
    assert device.tokens["a"] == list(range(1, 9))


def test_without_the_setting_each_is_computed_at_once():
    device, now = busy(delay=0)
    for name in "abc":
        device.scheduler.add_request(request(name, 4, 8))
        device.step()
    assert [computed(device, name) for name in "abc"] == [now, now + 1, now + 2]


def test_nobody_waits_alone():
    device, _ = busy()
    device.scheduler.abort("answer", 0)
    device.step()
    now = len(device.plans)
    device.scheduler.add_request(request("alone", 4, 8))
    device.step()
    assert computed(device, "alone") == now


def test_nobody_waits_for_whom_nobody_is_likely_to_come():
    device, now = busy(every=3 * STEPS)
    device.scheduler.add_request(request("rare", 4, 8))
    device.step()
    assert computed(device, "rare") == now


def test_an_answer_in_the_middle_waits_for_nobody():
    device, now = busy()
    device.scheduler.add_request(request("begun", 4, 8, output_token_ids=[1, 2]))
    device.scheduler.add_request(request("new", 4, 8))
    device.step()
    assert computed(device, "begun") == computed(device, "new") == now


def test_who_takes_the_last_slot_waits_for_nobody():
    device, now = busy(slots=3)
    device.scheduler.add_request(request("first", 4, 8))
    device.step()
    device.scheduler.add_request(request("last", 4, 8))
    device.step()
    assert computed(device, "first") == computed(device, "last") == now + 1


def test_who_has_waited_for_a_slot_waits_no_longer():
    device, _ = busy(slots=2)
    device.scheduler.add_request(request("holds", 4, 3 * STEPS))
    device.step()
    device.scheduler.add_request(request("waits", 4, 8))
    while "waits" not in {s.request.request_id for s in device.scheduler.running}:
        device.step()
    assert computed(device, "waits") == len(device.plans) - 1


@pytest.mark.parametrize(("tokens", "waits"), [(100, True), (600, False)])
def test_enough_tokens_wait_for_nobody(tokens, waits):
    delay = PrefillDelay(STEPS)
    for step in range(8):
        delay.came(step)
    assert delay.waits(8, [8, 8], [tokens, tokens]) is waits


@given(
    st.integers(0, 6),
    st.lists(st.integers(0, 5), max_size=20),
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 600)), min_size=1, max_size=5),
)
def test_who_waits_has_a_reason(max_steps, pauses, later, prompts):
    delay, step, arrivals = PrefillDelay(max_steps), 0, []
    for pause in pauses:
        step += pause
        delay.came(step)
        arrivals.append(step)
    step += later
    ages, tokens = zip(*prompts)
    waits = delay.waits(step, [step - age for age in ages], tokens)
    likely = len(arrivals) >= 8 and (step - arrivals[-8]) / 8 <= 2 * max_steps
    assert waits == (max(ages) < max_steps and sum(tokens) < 1024 and likely)
