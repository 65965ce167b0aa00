"""The scaling policy: bounds, hold, monotone in load, calm on constant load, quick, and the same again from its record."""

from __future__ import annotations

import itertools
import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.outputs import EngineLoad
from cluster.scaling.capacity import CapacityModel, Observation, StepCosts, learned, step_costs
from cluster.scaling.fleet import Decision, FleetInputs, PolicySettings, PolicyState, from_json, to_json
from cluster.scaling.inputs import EngineSample, IngressLoad, TargetCount
from cluster.scaling.policy import decide

numbers = st.one_of(st.floats(), st.integers(-5, 10**6).map(float))
counts = st.integers(-3, 10**6)
engines = st.builds(
    EngineSample,
    st.integers(0, 9).map(str),
    st.builds(
        EngineLoad,
        free=counts,
        max_queued=counts,
        num_ended=counts,
        num_tokens=counts,
        num_running=counts,
        num_waiting=counts,
        kv_tokens=counts,
        num_arrived=counts,
        num_prompt_tokens=counts,
        num_generated_tokens=counts,
        num_steps=counts,
        num_prefill_tokens=counts,
    ),
    numbers,
)
ingresses = st.builds(
    IngressLoad,
    numbers,
    counts,
    numbers,
    numbers,
    counts,
    counts,
    st.none(),
    st.builds(TargetCount, counts, counts, st.none()),
)
odd_inputs = st.builds(
    FleetInputs,
    numbers,
    st.lists(engines, max_size=2).map(tuple),
    st.lists(ingresses, max_size=1).map(tuple),
    st.one_of(st.none(), counts),
    counts,
    counts,
)


def steady(at: float, rate: float, num_engines: int, target: int, output: int = 200) -> FleetInputs:
    """A fleet that has served ``rate`` since the beginning, with prompts of 1,000 tokens and answers of ``output``."""
    served, running = rate * at / num_engines, rate * output * 0.04
    done = int(served)
    load = EngineLoad(
        1,
        1,
        num_ended=done,
        num_tokens=int(running * 1100 / num_engines),
        num_running=int(running / num_engines),
        kv_tokens=200_000,
        num_arrived=done,
        num_prompt_tokens=1000 * done,
        num_generated_tokens=int(output * served),
    )
    ingress = IngressLoad(
        at, int(rate * at), rate, rate * 1000, int(running), 0, None, TargetCount(int(rate * at), 0, 1.0)
    )
    samples = tuple(EngineSample(str(i), load, 0.1) for i in range(num_engines))
    return FleetInputs(at, samples, (ingress,), current_target=target)


def run(rate: float, num_engines: int, seconds: int, limits: PolicySettings) -> list[Decision]:
    state, target, made = PolicyState(), num_engines, []
    for second in range(1, seconds):
        made.append(decide(steady(1e6 + second, rate, num_engines, target), state, limits))
        state, target = made[-1].state, made[-1].target
    return made


@settings(max_examples=40, deadline=None)
@given(st.lists(odd_inputs, min_size=1, max_size=3), st.integers(0, 5), st.integers(0, 50))
def test_whatever_comes_the_target_is_a_count_within_the_bounds(sequence, lowest, more):
    limits, state = PolicySettings(min_replicas=lowest, max_replicas=lowest + more), PolicyState()
    for inputs in sequence:
        decision = decide(inputs, state, limits)
        assert isinstance(decision.target, int) and lowest <= decision.target <= lowest + more
        state = decision.state


@given(st.integers(1, 50), st.floats(0, 1e5))
def test_without_inputs_the_target_stays(target, now):
    limits = PolicySettings(max_replicas=50)
    assert decide(FleetInputs(now, current_target=target), PolicyState(), limits).target == target
    remembered = PolicyState(at=now, target=target)
    assert decide(FleetInputs(now + 1, current_target=0), remembered, limits).target == target


def of_two(inputs: FleetInputs) -> FleetInputs:
    """The same load through two ingresses."""
    (one,) = inputs.ingresses
    half = one._replace(arrivals_per_s=one.arrivals_per_s / 2, prompt_tokens_per_s=one.prompt_tokens_per_s / 2)
    return inputs._replace(ingresses=(half, half))


def partly_known(inputs: FleetInputs, rng: random.Random, ingress_too: bool) -> FleetInputs:
    """Some engines have said nothing of late, or nothing at all, or an ingress has not."""
    ages = [0.1, 6.0, 60.0]
    engines = [e._replace(age_s=rng.choice(ages)) for e in inputs.engines if rng.random() < 0.8]
    ingresses = inputs.ingresses
    if ingress_too and rng.random() < 0.3:
        ingresses = (*ingresses[1:], ingresses[0]._replace(sampled_at=inputs.now - 5))
    return inputs._replace(
        engines=tuple(engines),
        ingresses=ingresses,
        num_ready=len(inputs.engines),
        num_unknown=len(inputs.engines) - len(engines),
    )


def is_whole(inputs: FleetInputs) -> bool:
    limit = PolicySettings().max_age_s
    return (
        not inputs.num_unknown
        and all(e.age_s <= 5.0 for e in inputs.engines)
        and all(inputs.now - i.sampled_at <= limit for i in inputs.ingresses)
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 60), min_size=1, max_size=6), st.integers(2, 12), st.integers(0, 999), st.booleans())
def test_nobody_leaves_while_some_are_not_known(rates, num_engines, seed, ingress_too):
    """Whatever the load does meanwhile; a weight that lets engines leave after a second shows each attempt."""
    rng, limits = random.Random(seed), PolicySettings(min_replicas=0, max_replicas=100, cost_weight=30.0)
    state, target = PolicyState(), num_engines
    for second in range(150):
        rate = rates[second // 25 % len(rates)]
        inputs = partly_known(of_two(steady(1e6 + second, rate, num_engines, target)), rng, ingress_too)
        decision = decide(inputs, state, limits)
        assert decision.target >= target or is_whole(inputs)
        state, target = decision.state, decision.target


@settings(max_examples=15, deadline=None)
@given(st.floats(0.5, 60), st.integers(1, 40), st.integers(0, 999))
def test_a_gap_makes_a_load_look_neither_smaller_nor_larger(rate, gap_s, seed):
    """An ingress is silent for a while, and some engines: the demand is what it is without that."""
    limits, rng = PolicySettings(max_replicas=1000), random.Random(seed)
    state = run(rate, 4, 100, limits)[-1].state
    twin = state
    for second in range(100, 200):
        known = of_two(steady(1e6 + second, rate, 4, 4))
        inputs = known
        if second < 100 + gap_s:
            inputs = partly_known(inputs, rng, False)
            inputs = inputs._replace(ingresses=(inputs.ingresses[0], inputs.ingresses[1]._replace(sampled_at=1e6 + 99)))
        state, twin = decide(inputs, state, limits).state, decide(known, twin, limits).state
        assert math.isclose(state.demands[-1][1], twin.demands[-1][1], rel_tol=0.05), second


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([0.05, 0.2, 1.0]), st.integers(0, 99))
def test_words_that_are_late_keep_no_engine_of_a_noisy_load(late, seed):
    """A fleet of which every look finds somebody in the middle of a long step gets as small as one that is heard at once."""
    limits, rng = PolicySettings(max_replicas=100), np.random.default_rng(seed)

    def fleet(share: float) -> int:
        state, target = PolicyState(), 40
        arrived = np.cumsum(np.random.default_rng(seed).poisson(10.0, 400))
        for second in range(20, 400):
            inputs = steady(1e6 + second, 10.0, target, target)
            rate = float(arrived[second] - arrived[second - 10]) / 10
            (ingress,) = inputs.ingresses
            ages = np.where(rng.random(target) < share, 1.0, 0.1)
            decision = decide(
                inputs._replace(
                    engines=tuple(e._replace(age_s=float(age)) for e, age in zip(inputs.engines, ages)),
                    ingresses=(ingress._replace(arrivals_per_s=rate, prompt_tokens_per_s=1000 * rate),),
                ),
                state,
                limits,
            )
            state, target = decision.state, decision.target
        return target

    assert fleet(late) <= fleet(0.0) + 1 <= 8


def test_a_load_that_is_surely_known_starts_engines_whoever_else_is_silent():
    state = run(20.0, 4, 60, PolicySettings(max_replicas=50))[-1].state
    known = steady(1e6 + 61, 60.0, 4, 4)
    silent = known._replace(engines=tuple(e._replace(age_s=9.0) for e in known.engines))
    limits = PolicySettings(max_replicas=50)
    assert 4 < decide(silent, state, limits).target <= decide(known, state, limits).target
    half = known._replace(ingresses=(*known.ingresses, known.ingresses[0]._replace(sampled_at=1.0, arrivals_per_s=0.0)))
    assert decide(half, state, limits).target > 4
    nobody = silent._replace(ingresses=())
    assert decide(nobody, state, limits).target == 4


@settings(max_examples=50, deadline=None)
@given(st.floats(0.5, 100), st.floats(1, 3), st.integers(1, 20))
def test_more_load_never_wants_fewer_engines(rate, factor, num_engines):
    limits = PolicySettings(max_replicas=1000)
    state = run(rate, num_engines, 20, limits)[-1].state
    less = decide(steady(1e6 + 21, rate, num_engines, num_engines), state, limits)
    more = decide(steady(1e6 + 21, rate * factor, num_engines, num_engines), state, limits)
    assert more.target >= less.target


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 100), st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 400))
def test_more_that_wait_never_want_fewer_engines(rate, held, more, output):
    limits = PolicySettings(max_replicas=1000)
    state = run(rate, 4, 20, limits)[-1].state

    def target(num_held: int) -> int:
        inputs = steady(1e6 + 21, rate, 4, 4, output)
        waiting = inputs.ingresses[0]._replace(num_held=num_held)
        return decide(inputs._replace(ingresses=(waiting,)), state, limits).target

    assert target(held + more) >= target(held)


def test_short_answers_that_are_too_many_are_worked_off_within_a_while_and_not_at_once():
    """A thousand wait for a minute: 120 seconds of an engine. With answers of two seconds, 60 engines would end them at once."""
    limits, state, target, targets = PolicySettings(max_replicas=1000), PolicyState(), 4, []
    for second in range(1, 180):
        inputs = steady(1e6 + second, 20.0, 4, target, output=20)
        waiting = inputs.ingresses[0]._replace(num_held=1000 if second > 120 else 0)
        decision = decide(inputs._replace(ingresses=(waiting,)), state, limits)
        state, target = decision.state, decision.target
        targets.append(target)
    usual = max(targets[60:120])
    assert usual + 3 <= targets[-1] <= usual + 12, (usual, targets[-1])


@settings(max_examples=10, deadline=None)
@given(st.floats(1, 100))
def test_a_constant_load_keeps_its_engines(rate):
    targets = [decision.target for decision in run(rate, 4, 400, PolicySettings(max_replicas=1000))]
    changes = sum(a != b for a, b in itertools.pairwise(targets[100:]))
    assert changes <= 1, targets[100:]


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_noise_of_independent_requests_starts_and_stops_hardly_anybody(seed):
    """Poisson arrivals of 50 a second, as an ingress measures them (over two seconds), for 20 minutes."""
    rng, limits, state, target, rate, targets = (
        random.Random(seed),
        PolicySettings(max_replicas=1000),
        PolicyState(),
        8,
        50.0,
        [],
    )
    for second in range(1, 1200):
        rate += (1 - math.exp(-1 / 2)) * (rng.normalvariate(50.0, math.sqrt(50.0)) - rate)
        inputs = steady(1e6 + second, 50.0, 8, target)
        seen = inputs.ingresses[0]._replace(arrivals_per_s=rate, prompt_tokens_per_s=1000 * rate)
        decision = decide(inputs._replace(ingresses=(seen,)), state, limits)
        state, target = decision.state, decision.target
        targets.append(target)
    changes = sum(a != b for a, b in itertools.pairwise(targets[100:]))
    assert changes <= 20 and max(targets[100:]) - min(targets[100:]) <= 2, (changes, set(targets[100:]))


def test_longer_prompts_count_when_they_come_and_not_when_they_are_computed():
    limits = PolicySettings(max_replicas=1000)
    state = run(50.0, 8, 60, limits)[-1].state
    inputs = steady(1e6 + 61, 50.0, 8, 8)
    before = decide(inputs, state, limits).target
    longer = inputs._replace(ingresses=(inputs.ingresses[0]._replace(prompt_tokens_per_s=150_000.0),))
    assert decide(longer, state, limits).target > before + 2


def test_a_crowd_of_a_moment_starts_nobody_and_one_that_stays_does():
    limits, target, state = (
        PolicySettings(max_replicas=1000),
        8,
        run(50.0, 8, 60, PolicySettings(max_replicas=1000))[-1].state,
    )
    calm = decide(steady(1e6 + 61, 50.0, 8, target), state, limits).target
    for second in range(61, 121):
        inputs = steady(1e6 + second, 50.0, 8, target)
        crowd = inputs.ingresses[0]._replace(num_held=2000)
        decision = decide(inputs._replace(ingresses=(crowd,)), state, limits)
        state, target = decision.state, decision.target
        if second == 61:
            assert target == calm
    assert target > calm


def test_one_leaves_only_after_a_while_and_none_is_left_when_nothing_comes():
    limits = PolicySettings(min_replicas=0)
    idle = [d.target for d in run(0.0, 1, 200, limits)]
    assert idle[-1] == 0
    assert run(0.0, 1, 200, PolicySettings())[-1].target == 1
    held = steady(1e6 + 500, 0.0, 1, 0)
    waiting = held._replace(engines=(), ingresses=(held.ingresses[0]._replace(num_held=1),))
    assert decide(waiting, PolicyState(), limits).target == 1


def test_the_last_engine_leaves_a_while_after_the_last_request_whatever_the_load_was_before():
    limits, state, target, slept = PolicySettings(min_replicas=0, cost_weight=30.0), PolicyState(), 1, []
    for second in range(1, 120):
        rate = 0.2 if second < 60 else 0.0
        decision = decide(steady(1e6 + second, rate, 1, target)._replace(num_ready=min(target, 1)), state, limits)
        state, target = decision.state, decision.target
        if not target:
            slept.append(second)
    # With such a weight one that is not needed is kept for half a second, and the last one for eight times that.
    assert slept and 60 + 8 * 0.5 <= slept[0] <= 60 + 8 * 0.5 + 2
    assert slept == [*range(slept[0], 120)], "what came before wakes nobody"


def test_a_load_that_swings_by_a_little_about_a_whole_engine_starts_nobody_again_and_again():
    """By a twentieth, for so long each time that an engine could leave and be missed."""
    limits, state, target, targets = PolicySettings(max_replicas=1000), PolicyState(), 8, []
    for second in range(1, 900):
        rate = 33.0 * (1.0 if second // 60 % 2 else 0.95)
        decision = decide(steady(1e6 + second, rate, 8, target), state, limits)
        state, target = decision.state, decision.target
        # As if it missed just as many answers as it may, so that the head room stays.
        state = replace(state, head_room=0.15)
        targets.append(target)
    assert sum(a != b for a, b in itertools.pairwise(targets[200:])) <= 1, targets[200:]


def test_a_policy_that_has_just_begun_lets_nobody_go_before_it_knows_the_load():
    targets = [decision.target for decision in run(1.0, 9, 200, PolicySettings(max_replicas=1000))]
    assert set(targets[:59]) == {9} and targets[-1] == 1


def test_misses_are_forgotten_within_hours_though_nobody_asks():
    before = replace(run(20.0, 4, 60, PolicySettings())[-1].state, num_recent=1000.0, num_recent_missed=500.0)
    later = steady(before.at + 4 * 3600, 20.0, 4, 4)
    (ingress,) = later.ingresses
    quiet = ingress._replace(tpot=TargetCount(before.num_met, before.num_missed, None))
    after = decide(later._replace(ingresses=(quiet,)), before, PolicySettings(max_state_age_s=1e6)).state
    assert after.num_recent < 0.02 * 1000 and after.num_recent_missed < 0.02 * 500


def test_an_ingress_that_comes_back_brings_nothing_of_long_ago():
    limits, before = PolicySettings(), run(20.0, 4, 60, PolicySettings())[-1].state
    inputs = steady(before.at + 1, 20.0, 4, 4)
    (known,) = inputs.ingresses
    late = known._replace(tpot=TargetCount(10_000_000, 5_000_000, 1.0))
    after = decide(inputs._replace(ingresses=(known, late)), before, limits).state
    assert after.num_recent <= before.num_recent and after.head_room == before.head_room
    more = steady(before.at + 2, 20.0, 4, 4)
    (known,) = more.ingresses
    again = decide(more._replace(ingresses=(known, late)), after, limits).state
    assert 0 < again.num_recent - after.num_recent < 100, "and counts from then on"


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 0.03), st.floats(0, 0.03), st.integers(0, 50), st.floats(60, 20_000))
@example(0.001, 0.02, 1, 3600.0)
def test_the_fewer_missed_of_late_the_less_head_room_is_kept(one, other, more_missed, old_s):
    """After the same answers, however long they have been counted."""
    few, many = sorted((one, other))
    before = run(20.0, 4, 60, PolicySettings())[-1].state

    def head_room(missed_share: float) -> float:
        state = replace(before, since=before.at - old_s, num_recent=50_000.0, num_recent_missed=50_000 * missed_share)
        inputs = steady(before.at + 1, 20.0, 4, 4)
        (ingress,) = inputs.ingresses
        counted = TargetCount(state.num_met + 100, state.num_missed + more_missed, None)
        return decide(
            inputs._replace(ingresses=(ingress._replace(tpot=counted),)), state, PolicySettings()
        ).state.head_room

    assert head_room(few) <= head_room(many)
    if more_missed == 1 and few < 0.005 and many > 0.01:
        assert head_room(few) < head_room(many)


def test_at_a_bound_it_says_that_it_holds():
    at_the_lower = run(0.0, 1, 200, PolicySettings())[-1]
    assert (at_the_lower.target, at_the_lower.reason[:17]) == (1, "hold at the bound")
    at_the_upper = run(100.0, 2, 20, PolicySettings(max_replicas=2))[-1]
    assert (at_the_upper.target, at_the_upper.reason[:17]) == (2, "hold at the bound")
    assert "the load needs" in at_the_upper.reason
    two = [decision for decision in run(0.0, 2, 200, PolicySettings()) if decision.reason.startswith("down")]
    assert [decision.target for decision in two] == [1], "and no word of it where it does not hold"


def test_a_record_is_decided_again_alike():
    state, limits = PolicyState(), PolicySettings(max_replicas=30)
    for second in range(30):
        inputs = steady(1e6 + second, 40.0 + second, 5, 5)
        again = [from_json(to_json(v), type(v)) for v in (inputs, state, limits)]
        decision = decide(inputs, state, limits)
        assert decide(*again) == decision == from_json(to_json(decision), Decision)
        state = decision.state


def test_a_decision_takes_less_than_a_millisecond():
    state, limits, times = PolicyState(), PolicySettings(max_replicas=200), []
    for second in range(50):
        inputs = steady(1e6 + second, 300.0, 100, 100)
        begin = time.process_time()
        state = decide(inputs, state, limits).state
        times.append(time.process_time() - begin)
    assert sorted(times)[25] < 0.005  # five times as much as it may take


def test_step_times_are_learned():
    true, model, prior = StepCosts(0.05, 3e-4, 1e-4, 4e-7), CapacityModel(), StepCosts()
    for i in range(400):
        prefill, rows, context = (i * 37) % 900, 5 + (i * 13) % 90, 1000.0 * ((i * 29) % 150)
        seconds = true.step + true.prefill_token * prefill + true.decode_row * rows + true.context_token * context
        model = learned(model, prior, Observation(seconds, prefill, rows, context))
    found = step_costs(model, prior)
    predicted = found.step + found.prefill_token * 500 + found.decode_row * 50 + found.context_token * 60_000
    wanted = true.step + true.prefill_token * 500 + true.decode_row * 50 + true.context_token * 60_000
    assert abs(predicted / wanted - 1) < 0.05
    assert learned(model, prior, Observation(math.nan, 1, 1, 1)) is model


def test_a_few_steps_say_nothing_of_how_long_one_is():
    """A step or two more or less in half a second are no step of another length."""
    state, limits = PolicyState(), PolicySettings()
    for tick, steps in enumerate((0, 4, 6, 11, 75)):
        assert "" not in state.capacity or not state.capacity[""].weight, "two steps, and a few more"
        at = 1e6 + tick / 2
        load = EngineLoad(
            1, 1, num_tokens=100, num_running=2, num_arrived=2, num_generated_tokens=2 * steps, num_steps=steps
        )
        ingress = IngressLoad(at, 2, 0.4, 40.0, 2, 0, None, None)
        state = decide(
            FleetInputs(at, (EngineSample("0", load, 0.0),), (ingress,), current_target=1), state, limits
        ).state
    seen = state.capacity[""]
    assert seen.weight == 1, "with those that followed they are a while that says something"
    assert abs(seen.speed - math.log(2.0 / 75 / 0.0201)) < 0.1


def test_costs_are_learned_though_prompts_are_counted_when_they_begin():
    """An engine that computes whole prompts over several steps, looked at twice a second: each part costs what it does."""
    true, state, limits = StepCosts(), PolicyState(), PolicySettings()
    rng, now, prompts, tokens, rows, left = random.Random(0), 1e6, 0, 0, 8, 0
    steps = prefilled = 0
    for tick in range(1200):
        end = 1e6 + tick / 2
        while now < end:
            if not left and rng.random() < 0.15:
                left = rng.choice((300, 1200, 3000))
                prompts += left
            share = min(left, 600)
            left -= share
            now += true.step + share * true.prefill_token + rows * true.decode_row
            tokens, steps, prefilled = tokens + rows, steps + 1, prefilled + share
        load = EngineLoad(
            1, 1, num_running=rows, num_arrived=2, num_prompt_tokens=prompts, num_generated_tokens=tokens,
            num_steps=steps, num_prefill_tokens=prefilled,
        )  # fmt: skip
        ingress = IngressLoad(end, 2, 1.0, 1000.0, rows, 0, None, None)
        inputs = FleetInputs(end, (EngineSample("0", load, 0.0),), (ingress,), current_target=1)
        state = decide(inputs, state, limits).state
    found = step_costs(state.capacity[""], limits.costs)
    assert abs(found.prefill_token / true.prefill_token - 1) < 0.03
    assert abs(found.step / true.step - 1) < 0.03


def test_an_engine_that_stands_still_between_requests_does_not_look_slow():
    """One request a second or so, with pauses between them: what steps cost is learned from those that computed."""
    true, state, limits = StepCosts(), PolicyState(), PolicySettings()
    rng, now, prompts, tokens, came = random.Random(1), 1e6, 0, 0, 0
    next_at, rows, left, steps, prefilled = 1e6, [], 0, 0, 0
    for tick in range(2400):
        end = 1e6 + tick / 2
        while now < end:
            while next_at <= now:
                prompts, left, came = prompts + 800, left + 800, came + 1
                rows.append(22)
                next_at += rng.expovariate(1.5)
            if not rows:
                now = min(end, next_at)
                continue
            share = min(left, 600)
            left -= share
            now += true.step + share * true.prefill_token + len(rows) * true.decode_row
            tokens, steps, prefilled = tokens + len(rows), steps + 1, prefilled + share
            rows = [row - 1 for row in rows if row > 1]
        load = EngineLoad(
            1, 1, num_running=len(rows), num_arrived=came, num_ended=came - len(rows), num_prompt_tokens=prompts,
            num_generated_tokens=tokens, num_steps=steps, num_prefill_tokens=prefilled,
        )  # fmt: skip
        inputs = FleetInputs(
            end, (EngineSample("0", load, 0.0),), (IngressLoad(end, came, 1.5, 1200.0, 1, 0, None, None),),
            current_target=1,
        )  # fmt: skip
        state = decide(inputs, state, limits).state
    found = step_costs(state.capacity[""], limits.costs)
    assert abs(found.prefill_token / true.prefill_token - 1) < 0.25
    assert abs(found.step / true.step - 1) < 0.25


def slow_engine(state: PolicyState, begin: float, seconds: float, output: int, before: EngineLoad) -> Decision:
    """An engine with eight rows and steps of 0.1 s, whose answers have ``output`` tokens, looked at twice a second."""
    for tick in range(1, int(2 * seconds) + 1):
        ended = int(tick * 40 / output)
        load = before._replace(
            num_running=8, num_arrived=before.num_arrived + ended, num_ended=before.num_ended + ended,
            num_generated_tokens=before.num_generated_tokens + 40 * tick, num_steps=before.num_steps + 5 * tick,
        )  # fmt: skip
        at = begin + tick / 2
        ingress = IngressLoad(at, 1, 80 / output, 8000.0 / output, 8, 0, None, None)
        inputs = FleetInputs(at, (EngineSample("0", load, 0.0),), (ingress,), current_target=1)
        decision = decide(inputs, state, PolicySettings())
        state, last = decision.state, load
    return decision, last


def test_lengths_are_forgotten_as_soon_where_looks_are_long():
    decision, load = slow_engine(PolicyState(), 1e6, 300, 1000, EngineLoad(1, 1, num_arrived=0, num_generated_tokens=0))
    mean = decision.state.output_tokens / decision.state.num_ended
    assert 800 < mean < 1200
    decision, _ = slow_engine(decision.state, 1e6 + 300, 90, 100, load)
    assert decision.state.output_tokens / decision.state.num_ended < 200


def test_a_policy_that_lost_its_state_knows_lengths_by_what_engines_did():
    """Those who run beside are no sign that answers are short."""
    load = EngineLoad(
        1, 1, num_ended=1000, num_running=64, num_arrived=1064, num_prompt_tokens=1_064_000,
        num_generated_tokens=1_000_000 + 64 * 500, num_tokens=64 * 1500, kv_tokens=200_000,
    )  # fmt: skip
    engines = tuple(EngineSample(str(i), load, 0.0) for i in range(8))
    ingress = IngressLoad(1e6, 8000, 4.0, 4000.0, 512, 0, None, None)
    found = decide(FleetInputs(1e6, engines, (ingress,), current_target=8), PolicyState(), PolicySettings()).state
    known = replace(found, num_ended=1000.0, output_tokens=1_000_000.0)
    assert not found.begins_cold
    sure = decide(
        FleetInputs(1e6 + 0.1, engines, (ingress._replace(sampled_at=1e6 + 0.1),), current_target=8),
        known,
        PolicySettings(),
    )
    assert abs(found.demands[-1][1] / sure.state.demands[-1][1] - 1) < 0.1


@given(st.integers(200, 10_000), st.integers(16, 500), st.floats(30, 120))
@settings(max_examples=20, deadline=None)
def test_a_request_now_and_then_starts_no_second_engine(prompt, output, every):
    """Of one request the rate over two seconds is half a request a second for a moment."""
    state, now = PolicyState(), 1e6
    generated = ended = 0
    for _ in range(1200):
        now += 0.5
        since, count = now % every, int(now // every)
        rate = 0.5 * math.exp(-since / 2) if since < 30 else 0.0
        running = since < output * 0.03
        ended = count - int(running)
        generated = ended * output + (int(since / 0.03) if running else 0)
        load = EngineLoad(
            1, 1, num_ended=ended, num_running=int(running), num_arrived=count, num_prompt_tokens=count * prompt,
            num_generated_tokens=generated, num_tokens=prompt if running else 0, kv_tokens=200_000,
        )  # fmt: skip
        ingress = IngressLoad(now, count, rate, rate * prompt, int(running), 0, None, None)
        decision = decide(
            FleetInputs(now, (EngineSample("0", load, 0.0),), (ingress,), current_target=1), state, PolicySettings()
        )
        state = decision.state
        assert decision.target <= 1, decision.reason
