"""Prompts wait for others to be computed with, for a few steps, where others are likely to come and nobody but them waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.scheduling.prefill_delay import PrefillDelay
from tests.actors.scheduling.test_scheduler import Device, make_scheduler, request

STEPS = 4


def busy(delay: int = STEPS, every: int = 2, max_step_tokens: int | None = None, **settings) -> tuple[Device, int]:
    """A device with an answer of which more comes, and eight requests that have come, one every so many steps."""
    settings = {"num_blocks": 200, "max_num_seqs": 16, "budget": 300, **settings}
    scheduler = make_scheduler(**settings, prefill_delay=PrefillDelay(delay, max_step_tokens))
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
    device, now = busy(max_num_seqs=3)
    device.scheduler.add_request(request("first", 4, 8))
    device.step()
    device.scheduler.add_request(request("last", 4, 8))
    device.step()
    assert computed(device, "first") == computed(device, "last") == now + 1


def test_who_has_waited_for_a_slot_waits_no_longer():
    device, _ = busy(max_num_seqs=2)
    device.scheduler.add_request(request("holds", 4, 3 * STEPS))
    device.step()
    device.scheduler.add_request(request("waits", 4, 8))
    while "waits" not in {s.request.request_id for s in device.scheduler.running}:
        device.step()
    assert computed(device, "waits") == len(device.plans) - 1


@pytest.mark.parametrize(
    ("prompt", "settings", "waits"),
    [
        (250, {}, True),
        (350, {}, False),  # it alone fills what a step has
        (299, {}, False),
        (250, {"max_step_tokens": 200}, False),  # a step of so many tokens takes longer than one with fewer
        (150, {"max_step_tokens": 200}, True),
        (1100, {"budget": 2000}, False),
        (1000, {"budget": 2000}, True),
    ],
)
def test_who_fills_a_step_or_makes_it_longer_waits_for_nobody(prompt, settings, waits):
    device, now = busy(**settings)
    device.scheduler.add_request(request("long", [*range(2, 2 + prompt)], 8))
    device.step()
    for _ in range(STEPS):
        device.step()
    assert computed(device, "long") == now + STEPS * waits


def test_the_rest_of_a_prompt_waits_for_nobody():
    device, now = busy()
    device.scheduler.add_request(request("long", [*range(2, 402)], 8))
    for _ in range(3):
        device.step()
    slot = next(s.slot for s in device.scheduler.running if s.request.request_id == "long")
    assert [plan.scheduled[slot] for plan in device.plans[now:]] == [299, 101, 1]


@given(
    st.integers(0, 6),
    st.none() | st.integers(0, 2000),
    st.lists(st.integers(0, 5), max_size=20),
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 600)), min_size=1, max_size=5),
    st.integers(1, 64),
    st.integers(1, 2048),
)
def test_who_waits_has_a_reason(max_steps, max_step_tokens, pauses, later, prompts, num_decoding, budget):
    delay, step, arrivals = PrefillDelay(max_steps, max_step_tokens), 0, []
    for pause in pauses:
        step += pause
        delay.came(step)
        arrivals.append(step)
    step += later
    ages, tokens = zip(*prompts)
    waits = delay.waits(step, num_decoding, budget, [step - age for age in ages], tokens)
    likely = len(arrivals) >= 8 and (step - arrivals[-8]) / 8 <= 2 * max_steps
    enough = min(1024, budget) if max_step_tokens is None else min(1024, budget, max_step_tokens - num_decoding)
    assert waits == (max(ages) < max_steps and sum(tokens) < enough and likely)
