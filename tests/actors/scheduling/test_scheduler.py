"""Scheduling without a model: a few lines stand in for the device and decide where each request stops."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.scheduling.kv_cache import KVCache
from actors.scheduling.prefill_delay import PrefillDelay
from actors.scheduling.queue_state import queue_state
from actors.scheduling.scheduler import Scheduler
from actors.scheduling.step_plan import SlotOutput, StepPlan, StepResult
from actors.scheduling.step_rows import PythonRows
from cluster.errors import InvalidRequestError, OverloadedError
from cluster.outputs import NO_TOKEN, PREEMPTED
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams

BLOCK = 16


def make_scheduler(num_blocks=8, max_num_seqs=4, budget=64, **kwargs) -> Scheduler:
    return Scheduler(KVCache(num_blocks, BLOCK), max_num_seqs, budget, num_blocks * BLOCK, **kwargs)


def request(name, prompt=4, max_tokens=8, **kwargs) -> EngineRequest:
    tokens = list(range(prompt)) if isinstance(prompt, int) else prompt
    return EngineRequest(name, tokens, SamplingParams(max_tokens=max_tokens), **kwargs)


class Device:
    """Runs plans in order: the n-th generated token of a request is n; a request stops at ``stops[name]`` tokens. Nobody with a
    slot stands still for more than ``patience`` steps, nor alone."""

    def __init__(
        self, scheduler: Scheduler, stops: dict[str, int] | None = None, overlap: bool = True, patience: int = 0
    ) -> None:
        self.scheduler, self.stops, self.depth = scheduler, stops or {}, 1 if overlap else 0
        self.patience, self.stood_still = patience, Counter[int]()
        self.slots: dict[int, list] = {}
        self.in_flight: deque[StepResult] = deque()
        self.tokens: dict[str, list[int]] = {}
        self.finished: dict[str, str] = {}
        self.plans: list[StepPlan] = []

    def run(self, plan: StepPlan) -> StepResult:
        plain_slots, plain_tokens, outputs = [], [], []
        for slot in plan.preempted:
            self.slots.pop(slot, None)
        for insert in plan.inserts:
            generated = len(insert.token_ids) - insert.num_prompt_tokens
            left = len(insert.token_ids) - insert.num_computed_tokens
            self.slots[insert.slot] = [insert.request_id, generated, left, insert.params.max_tokens]
        for slot, name in plan.request_ids.items():
            if slot in plan.preempted:
                outputs.append(SlotOutput(slot, name, PREEMPTED))
            elif slot not in self.slots:
                outputs.append(SlotOutput(slot, name, NO_TOKEN))
            elif (output := self.compute(slot, plan.scheduled[slot])).token != NO_TOKEN and not output.finish_reason:
                plain_slots.append(slot)
                plain_tokens.append(output.token)
            else:
                outputs.append(output)
        return StepResult(plan.step, plain_slots, plain_tokens, outputs)

    def compute(self, slot: int, count: int) -> SlotOutput:
        state = self.slots[slot]
        name, state[2] = state[0], state[2] - count
        assert state[2] >= 0, "more tokens were scheduled than exist"
        if state[2]:
            return SlotOutput(slot, name, NO_TOKEN)
        state[1], state[2] = state[1] + 1, 1
        reason = None
        if state[1] >= min(self.stops.get(name, state[3]), state[3]):
            reason = "stop" if state[1] < state[3] else "length"
            del self.slots[slot]
        return SlotOutput(slot, name, state[1], reason)

    def step(self) -> StepPlan | None:
        oldest = min(self.scheduler.running, key=lambda s: s.arrival, default=None)
        plan = self.scheduler.schedule()
        assert oldest is None or oldest in self.scheduler.running, "the oldest gave way"
        if plan is not None:
            self.plans.append(plan)
            assert plan.num_tokens <= self.scheduler.max_num_batched_tokens
            assert not set(plan.preempted) & set(plan.scheduled), "a victim was scheduled already"
            self.stood_still = Counter(
                {
                    s.arrival: self.stood_still[s.arrival] + 1
                    for s in self.scheduler.running
                    if s.slot not in plan.scheduled and not s.will_have_finished
                }
            )
            assert max(self.stood_still.values(), default=0) <= self.patience, "one stands still"
            assert plan.scheduled or not self.stood_still, "all stand still"
            self.in_flight.append(self.run(plan))
        while len(self.in_flight) > (self.depth if plan is not None else 0):
            self.save()
        return plan

    def save(self) -> None:
        for delta in self.scheduler.update(self.in_flight.popleft()):
            known = self.tokens.setdefault(delta.request_id, [])
            assert delta.index == len(known), "a token is missing or repeated"
            known += delta.token_ids
            if delta.finish_reason:
                self.finished[delta.request_id] = delta.finish_reason
        self.scheduler.check_integrity()

    def drain(self, limit=10_000) -> None:
        for _ in range(limit):
            if not self.scheduler.has_unfinished() and not self.in_flight:
                return
            self.step()
        raise AssertionError("the scheduler does not come to an end")


def test_decoding_goes_before_prefill_and_the_budget_splits_a_long_prompt():
    scheduler = make_scheduler(num_blocks=16, budget=20)
    device = Device(scheduler)
    scheduler.add_request(request("short", 4, 16))
    device.step()
    scheduler.add_request(request("long", 50, 4))
    plans = [device.step() for _ in range(3)]
    assert [sorted(plan.scheduled.values()) for plan in plans] == [[1, 19], [1, 19], [1, 12]]
    device.drain()
    assert device.finished == {"short": "length", "long": "length"}


def test_what_is_left_of_prompts_is_known_until_each_has_its_first_token():
    scheduler = make_scheduler(num_blocks=40, budget=20)
    device, left = Device(scheduler), []
    scheduler.add_request(request("short", 4, 16))
    for number in range(8):
        if number == 2:
            scheduler.add_request(request("long", 50, 4))
            scheduler.add_request(request("waits", 40, 1))
        device.step()
        state = queue_state(scheduler)
        assert state.uncomputed_tokens == state.waiting_tokens + scheduler.num_uncomputed_prompt_tokens
        left.append(state.uncomputed_tokens)
    assert left == [0, 0, 71, 52, 33, 14, 0, 0]
    device.drain()


def test_few_requests_are_in_low_slots_also_after_many():
    scheduler = make_scheduler(64, max_num_seqs=16, budget=256)
    device = Device(scheduler)
    for index in range(16):
        scheduler.add_request(request(f"many-{index}", [1, 2], max_tokens=1 + 7 * index % 16))
    device.drain()
    for round_ in range(3):
        for index in range(3):
            scheduler.add_request(request(f"few-{round_}-{index}", [1, 2], max_tokens=4))
        device.drain()
    few = [insert.slot for plan in device.plans for insert in plan.inserts if insert.request_id.startswith("few")]
    assert few == [0, 1, 2] * 3


def test_nothing_is_launched_for_a_request_whose_last_token_is_in_flight():
    scheduler = make_scheduler()
    device = Device(scheduler)
    scheduler.add_request(request("a", 4, 2))
    assert device.step().scheduled and device.step().scheduled
    assert device.step() is None
    assert device.tokens == {"a": [1, 2]}


def test_a_stop_the_host_does_not_know_yet_costs_one_padding_row():
    scheduler = make_scheduler()
    device = Device(scheduler, {"a": 1})
    scheduler.add_request(request("a", 4, 8))
    device.drain()
    assert device.tokens == {"a": [1]} and device.finished == {"a": "stop"}
    assert sum(len(plan.scheduled) for plan in device.plans) == 2


def test_the_oldest_is_never_a_victim_and_the_victim_is_the_latest_of_lowest_priority():
    scheduler = make_scheduler(num_blocks=6, max_num_seqs=3)
    device = Device(scheduler)
    scheduler.add_request(request("oldest", 16, 40, priority=5))
    scheduler.add_request(request("urgent", 16, 40, priority=0))
    scheduler.add_request(request("late", 16, 40, priority=1))
    device.drain()
    victims = [plan.request_ids[slot] for plan in device.plans for slot in plan.preempted]
    assert victims and victims[0] == "late" and "oldest" not in victims
    assert {name: len(tokens) for name, tokens in device.tokens.items()} == {"oldest": 40, "urgent": 40, "late": 40}


def test_a_preempted_request_goes_to_the_front_of_its_queue_with_its_tokens():
    scheduler = make_scheduler(num_blocks=4, max_num_seqs=3)
    device = Device(scheduler)
    scheduler.add_request(request("a", 16, 40))
    scheduler.add_request(request("b", 16, 40))
    while not any(plan.preempted for plan in device.plans):
        device.step()
        scheduler.add_request(request(f"waits-{len(device.plans)}", 16, 1))
    while not scheduler.waiting or scheduler.waiting[0].request.request_id != "b":
        device.step()
    sequence = scheduler.waiting[0]
    assert sequence.num_prompt_tokens == 16 and sequence.num_output_tokens == len(device.tokens["b"]) > 0
    device.drain()
    assert device.tokens["b"] == list(range(1, 41))


def test_a_token_in_flight_when_its_request_is_preempted_is_delivered_and_counted():
    scheduler = make_scheduler(num_blocks=4, max_num_seqs=2)
    device = Device(scheduler)
    scheduler.add_request(request("a", 16, 40))
    scheduler.add_request(request("b", 16, 40))
    while not any(plan.preempted for plan in device.plans):
        before = len(device.tokens.get("b", []))
        device.step()
    # The step that carried the marker was launched while b's token of the step before was in flight.
    assert len(device.tokens["b"]) == before + 1


def test_a_victim_that_finished_in_flight_is_finished_not_rescheduled():
    def run(stops: dict[str, int]) -> Device:
        scheduler = make_scheduler(num_blocks=4, max_num_seqs=2)
        device = Device(scheduler, stops)
        scheduler.add_request(request("a", 16, 40))
        scheduler.add_request(request("b", 16, 40))
        while not any(plan.preempted for plan in device.plans):
            device.step()
        return device

    in_flight = len(run({}).tokens["b"])
    device = run({"b": in_flight})
    device.drain()
    assert device.finished["b"] == "stop" and len(device.tokens["b"]) == in_flight
    assert device.scheduler.num_preemptions == 1
    assert not any(insert.request_id == "b" for plan in device.plans[1:] for insert in plan.inserts)


def test_admission_leaves_every_running_sequence_a_block():
    scheduler = make_scheduler(num_blocks=6, max_num_seqs=4)
    device = Device(scheduler)
    scheduler.add_request(request("a", 16, 16))
    scheduler.add_request(request("b", 16, 16))
    device.step()
    scheduler.add_request(request("c", [7] * 40, 2))
    plan = device.step()
    assert plan.inserts == [], "three blocks for c would leave one block for two growing sequences"
    device.drain()
    assert scheduler.num_preemptions == 0 and len(device.finished) == 3


def test_what_could_never_fit_is_refused_at_the_door():
    scheduler = make_scheduler(num_blocks=4)
    with pytest.raises(
        InvalidRequestError, match=r"context length is 64 tokens. .* 65 tokens \(60 in the prompt, 5 in"
    ) as refused:
        scheduler.add_request(request("a", 60, 5))
    assert refused.value.param == "max_tokens"
    with pytest.raises(InvalidRequestError, match="at least one token"):
        scheduler.add_request(request("a", 0, 5))
    scheduler.add_request(request("a", 60, 4))
    Device(scheduler).drain()


def test_the_queue_is_bounded():
    scheduler = make_scheduler(max_num_seqs=1, max_queued_requests=2)
    device = Device(scheduler)
    for name in "rab":
        # One runs in the next step; a burst between two steps is not smaller than one that comes a piece at a time.
        scheduler.add_request(request(name))
    with pytest.raises(OverloadedError, match="3 requests are waiting, the limit is 3"):
        scheduler.add_request(request("c"))
    device.run(scheduler.schedule())
    with pytest.raises(OverloadedError, match="2 requests are waiting"):
        scheduler.add_request(request("c"))
    with pytest.raises(OverloadedError, match="2 requests are waiting"):
        scheduler.add_request(request("tried elsewhere", attempt=1))
    scheduler.add_request(request("begun elsewhere", attempt=1, output_token_ids=[1, 2]))
    # As many as there are slots: were they not bounded, nothing would be.
    with pytest.raises(OverloadedError, match="3 requests are waiting, the limit is 3"):
        scheduler.add_request(request("begun elsewhere, too", attempt=1, output_token_ids=[1, 2]))
    scheduler.check_integrity()


def test_a_clock_that_is_ahead_puts_nobody_behind_who_comes_later():
    scheduler = make_scheduler(max_num_seqs=1)
    for name, came_at, now in (("ahead", 1e9, 10.0), ("next", 0.0, 11.0), ("earlier", 9.0, 12.0)):
        scheduler.add_request(request(name, attempt=int(came_at > 0), came_at=came_at), now)
    assert [s.request.request_id for s in scheduler.waiting] == ["earlier", "ahead", "next"]


def test_a_prefix_is_computed_once():
    scheduler = make_scheduler(num_blocks=16, budget=256)
    device = Device(scheduler)
    scheduler.add_request(request("a", 40, 2))
    device.drain()
    scheduler.add_request(request("b", 40, 2))
    plan = device.step()
    assert plan.inserts[0].num_computed_tokens == 32 and plan.num_tokens == 8
    device.drain()
    scheduler.add_request(request("c", 40, 2, cache_salt="someone else"))
    assert device.step().inserts[0].num_computed_tokens == 0
    device.drain()


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token():
    scheduler = make_scheduler(num_blocks=16)
    device = Device(scheduler)
    for name in "ab":
        scheduler.add_request(request(name, 32, 2))
        device.drain()
    assert device.plans[-2].inserts[0].num_computed_tokens == 16


def test_abort_frees_blocks_at_once_in_every_state():
    scheduler = make_scheduler(num_blocks=4, max_num_seqs=2)
    device = Device(scheduler)
    for name in ("a", "b", "queued"):
        scheduler.add_request(request(name, 16, 40))
    scheduler.abort("queued", 0)
    while not any(plan.preempted for plan in device.plans):
        device.step()
    scheduler.abort("b", 0)  # preempting
    scheduler.abort("a", 0)  # running
    assert scheduler.kv_cache.num_available == 4
    assert scheduler.abort("a", 0) is None and scheduler.abort("nobody", 0) is None
    device.drain()
    assert device.finished == {} and not scheduler.running and not scheduler.waiting


def test_a_plan_of_markers_alone_is_launched():
    scheduler = make_scheduler()
    device = Device(scheduler)
    scheduler.add_request(request("a"))
    device.step()
    scheduler.abort("a", 0)
    plan = device.step()
    assert plan.preempted and not plan.scheduled
    device.drain()
    assert not scheduler.has_unfinished()


def admissions(plans: list[StepPlan]) -> list[str]:
    return [insert.request_id for plan in plans for insert in plan.inserts]


def test_urgent_requests_go_first_but_for_one_admission_of_so_many():
    scheduler = make_scheduler(max_num_seqs=1, oldest_first_every=4)
    device = Device(scheduler)
    for index in range(3):
        scheduler.add_request(request(f"patient-{index}", max_tokens=1, priority=9))
    for index in range(9):
        scheduler.add_request(request(f"urgent-{index}", max_tokens=1))
    device.drain()
    order = "".join(name[0] for name in admissions(device.plans))
    assert order == "uuupuuupuuup"
    patient = [name for name in admissions(device.plans) if name.startswith("patient")]
    assert patient == ["patient-0", "patient-1", "patient-2"]


def test_an_answer_in_the_middle_goes_before_those_to_begin():
    """Its client is reading; that it arrived here last is only because it began on another engine."""
    scheduler = make_scheduler(max_num_seqs=1, max_queued_requests=3)
    device = Device(scheduler)
    scheduler.add_request(request("urgent", max_tokens=1, priority=-1))
    for name in ("first", "second"):
        scheduler.add_request(request(name, max_tokens=1))
    for name in ("begun", "begun too"):
        device.tokens[name] = [1, 2]
        scheduler.add_request(request(name, max_tokens=3, attempt=1, output_token_ids=[1, 2]))
    device.drain()
    assert admissions(device.plans) == ["urgent", "begun", "begun too", "first", "second"]


def test_first_come_first_served_is_every_admission():
    scheduler = make_scheduler(max_num_seqs=1, oldest_first_every=1)
    device = Device(scheduler)
    names = [f"{index}" for index in range(6)]
    for name in names:
        scheduler.add_request(request(name, max_tokens=1, priority=-int(name)))
    device.drain()
    assert admissions(device.plans) == names


def steps_to_first_token(device: Device, name: str, limit: int = 1000) -> int:
    """Steps until one samples the first token of request ``name``."""
    for number in range(1, limit):
        plan = device.step()
        if plan and any(plan.request_ids[slot] == name for slot in plan.sampling):
            return number
    raise AssertionError(f"no token of {name} in {limit} steps")


def prompt_of(number: int, length: int) -> list[int]:
    """A prompt that begins like no other one."""
    return [1000 + number] * length


@pytest.mark.parametrize("num_between", [0, 1, 2])
def test_a_short_prompt_waits_for_no_whole_long_one(num_between):
    """Neither for one that is computed, nor for those that were admitted before it and have yet to begin."""
    scheduler = make_scheduler(num_blocks=400)
    device = Device(scheduler)
    scheduler.add_request(request("long", prompt_of(0, 2000)))
    for _ in range(3):
        device.step()
    for number in range(num_between):
        scheduler.add_request(request(f"between-{number}", prompt_of(1 + number, 1500)))
    scheduler.add_request(request("short", prompt_of(9, 6)))
    assert steps_to_first_token(device, "short") == 1
    assert admissions(device.plans) == ["long", *(f"between-{number}" for number in range(num_between)), "short"]
    device.drain()


def test_a_long_prompt_of_which_little_is_not_in_the_cache_is_a_short_one():
    scheduler = make_scheduler(num_blocks=400)
    device = Device(scheduler)
    scheduler.add_request(request("first turn", prompt_of(0, 1000), 2))
    device.drain()
    scheduler.add_request(request("long", prompt_of(1, 500)))
    device.step()
    scheduler.add_request(request("second turn", prompt_of(0, 1010)))
    assert steps_to_first_token(device, "second turn") == 1
    device.drain()


def test_a_long_prompt_beside_endless_short_ones_advances_in_each_step_and_has_its_turn():
    scheduler = make_scheduler(num_blocks=400, max_num_seqs=4)
    device, count = Device(scheduler), 0
    scheduler.add_request(request("long", prompt_of(0, 800), 1))
    while "long" not in device.finished:
        while len(scheduler.waiting) < 4:
            count += 1
            scheduler.add_request(request(f"short-{count}", prompt_of(count, 40), 1))
        device.step()
        assert count < 1000
    shares = [plan.scheduled[0] for plan in device.plans if plan.request_ids.get(0) == "long"]
    assert min(shares[:-1]) >= 64 // (4 * 4) and sum(shares) == 800
    # At last two short ones beside it get no more than their equal shares.
    assert 64 - 2 * (64 // (4 * 3)) in shares


def test_how_long_a_prompt_has_waited_counts_from_before_it_was_admitted():
    scheduler = make_scheduler(num_blocks=400, max_num_seqs=2)
    device = Device(scheduler)
    for name in "xy":
        scheduler.add_request(request(name, 4, 30))
    device.step()
    scheduler.add_request(request("old", prompt_of(1, 400), 1))
    for _ in range(28):
        device.step()
    scheduler.add_request(request("young", prompt_of(2, 300), 1))
    while scheduler.waiting:
        plan = device.step()
    assert plan is not None
    assert {plan.request_ids[slot]: count for slot, count in plan.scheduled.items()} == {"old": 56, "young": 8}
    device.drain()


def test_prompts_of_one_length_that_come_together_are_computed_one_after_the_other():
    """A prompt that would only be next in line is not begun, so that the first ones are not later for it."""
    scheduler = make_scheduler(num_blocks=400, max_num_seqs=8, budget=64)
    device = Device(scheduler)
    for number in range(8):
        scheduler.add_request(request(str(number), prompt_of(number, 320), 1))
    device.drain()
    ends = {device.plans[i].request_ids[slot]: i for i in range(len(device.plans)) for slot in device.plans[i].sampling}
    assert all(ends[str(number)] <= 5 * (number + 1) for number in range(8)), ends


def test_what_a_prompt_computes_is_not_computed_again_for_its_twins():
    scheduler = make_scheduler(num_blocks=400, max_num_seqs=8)
    device = Device(scheduler)
    for number in range(4):
        scheduler.add_request(request(f"twin-{number}", prompt_of(0, 1000), 2))
    scheduler.add_request(request("short", prompt_of(9, 6), 2))
    assert steps_to_first_token(device, "short") == 1
    device.drain()
    assert sum(plan.num_tokens for plan in device.plans) <= 1000 + 3 * BLOCK + 6 + 10
    assert len(device.finished) == 5


@settings(max_examples=60, deadline=None)
@given(
    budget=st.integers(8, 64),
    slots=st.integers(2, 8),
    lengths=st.lists(st.sampled_from([3, 20, 100, 700]), min_size=1, max_size=12),
    twins=st.booleans(),
    every=st.integers(1, 8),
)
def test_a_prompt_that_fits_a_share_is_computed_in_the_step_that_admits_it(budget, slots, lengths, twins, every):
    """And everybody comes to an end, whoever else there is and whoever comes in."""
    scheduler = make_scheduler(num_blocks=400, max_num_seqs=slots, budget=budget, oldest_first_every=every)
    device = Device(scheduler)
    for number, length in enumerate(lengths):
        scheduler.add_request(request(str(number), prompt_of(number % 2 if twins else number, length), 1 + number % 3))
        device.step()
        for name in ("now", "then"):
            if len(scheduler._free_slots) > len(scheduler.waiting):
                scheduler.add_request(request(f"{name}-{number}", prompt_of(100 + number, 1), 1))
                assert steps_to_first_token(device, f"{name}-{number}") == 1
    device.drain(len(lengths) * (700 + 4))
    assert len([name for name in device.finished if "-" not in name]) == len(lengths)


def test_a_reserved_place_is_there_for_who_was_moved_and_for_nobody_else():
    scheduler = make_scheduler(max_num_seqs=3)
    device = Device(scheduler)
    assert scheduler.num_open_places == 3
    assert (scheduler.reserve(2), scheduler.num_open_places) == (2, 1)
    for name in "ab":
        scheduler.add_request(request(name, max_tokens=40))
    device.step()
    assert [s.request.request_id for s in scheduler.running] == ["a"]
    assert scheduler.num_open_places == 0 and scheduler.reserve(1) == 0
    scheduler.release_reserved(1)
    scheduler.add_request(request("m", place=1))
    device.step()
    assert [s.request.request_id for s in scheduler.running] == ["a", "m"]
    scheduler.release_reserved(1)
    device.step()
    assert [s.request.request_id for s in scheduler.running] == ["a", "m", "b"]


def test_without_memory_for_everybody_and_one_more_no_place_is_open():
    scheduler = make_scheduler(num_blocks=4, max_num_seqs=4)
    scheduler.add_request(request("a", prompt=3 * BLOCK - 2))
    Device(scheduler).step()
    assert scheduler.num_open_places == 0 and scheduler.num_open_tokens == 0


def test_who_was_moved_waits_before_those_to_begin_and_is_not_refused():
    scheduler = make_scheduler(max_num_seqs=1, max_queued_requests=1)
    for name in "abc":
        if name == "b":
            scheduler.schedule()
        if name == "c":
            with pytest.raises(OverloadedError):
                scheduler.add_request(request("c"))
        scheduler.add_request(request(name, place=int(name == "c")))
    assert [s.request.request_id for s in scheduler.waiting] == ["c", "b"]


@settings(max_examples=60, deadline=None)
@given(
    every=st.integers(1, 5),
    num_blocks=st.integers(4, 12),
    slots=st.integers(1, 4),
    patient=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=4),
    flood=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=6),
)
def test_no_stream_of_urgent_requests_starves_a_patient_one(every, num_blocks, slots, patient, flood):
    """As long as urgent ones keep coming, also where blocks are short and the patient ones are preempted again and again."""
    scheduler = make_scheduler(num_blocks, slots, oldest_first_every=every)
    device, urgent = Device(scheduler), 0
    limit = num_blocks * BLOCK
    for index, (prompt, max_tokens) in enumerate(patient):
        tokens = [index] * min(prompt, limit - max_tokens)  # nobody waits for what another one computes
        scheduler.add_request(request(f"patient-{index}", tokens, max_tokens, priority=5))
    names = {f"patient-{index}" for index in range(len(patient))}
    for _ in range(5000):
        while len(scheduler.waiting) < slots + len(patient) + 2:
            prompt, max_tokens = flood[urgent % len(flood)]
            tokens = [100 + urgent] * min(prompt, limit - max_tokens)
            scheduler.add_request(request(f"urgent-{urgent}", tokens, max_tokens, priority=-5))
            urgent += 1
        device.step()
        if names <= device.finished.keys():
            break
    assert names <= device.finished.keys(), f"{urgent} urgent requests later"
    before = admissions(device.plans)
    if not scheduler.num_preemptions:
        # The i-th of the patient ones waits for i + 1 turns at the most.
        for index in range(len(patient)):
            assert before.index(f"patient-{index}") < every * (index + 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_request_ends_once_with_its_own_tokens(data):
    num_blocks = data.draw(st.integers(2, 12), "num_blocks")
    delay = data.draw(st.integers(0, 3), "delay")
    scheduler = make_scheduler(
        num_blocks,
        data.draw(st.integers(1, 6), "slots"),
        data.draw(st.integers(8, 64), "budget"),
        prefill_delay=PrefillDelay(delay),
    )
    if data.draw(st.booleans(), "rows in Python"):
        scheduler._rows = PythonRows()
    limit, device = num_blocks * BLOCK, Device(scheduler, overlap=data.draw(st.booleans(), "overlap"), patience=delay)
    aborted, count = set(), data.draw(st.integers(1, 12), "requests")
    for index in range(count):
        prompt = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=min(60, limit - 1)))
        max_tokens = data.draw(st.integers(1, min(60, limit - len(prompt))))
        device.stops[str(index)] = data.draw(st.integers(1, max_tokens))
        # Places are reserved now and then; who comes as moved takes one, if one is kept.
        scheduler.reserve(data.draw(st.integers(0, 2), "reserve"))
        moved = data.draw(st.booleans(), "moved")
        if moved and scheduler.num_reserved:
            scheduler.release_reserved(1)
        priority = data.draw(st.integers(0, 2))
        scheduler.add_request(request(str(index), prompt, max_tokens, priority=priority, place=int(moved)))
        for _ in range(data.draw(st.integers(0, 4))):
            device.step()
        if data.draw(st.booleans(), "expire"):
            scheduler.release_reserved(scheduler.num_reserved)
        victim = data.draw(st.none() | st.integers(0, index))
        if victim is not None and scheduler.abort(str(victim), 0) is not None:
            aborted.add(str(victim))
    scheduler.release_reserved(scheduler.num_reserved)
    device.drain()
    scheduler.check_integrity()
    for index in map(str, range(count)):
        if index not in aborted:
            assert device.tokens[index] == list(range(1, device.stops[index] + 1))
    assert scheduler.kv_cache.num_available == num_blocks
