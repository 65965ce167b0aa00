"""A simulated executor decides about slots what a device decides: the scheduler above it cannot tell the two apart."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest

from actors.engine.engine import Engine
from actors.engine.load_simulated import load_simulated_engine
from actors.engine.simulated import SimulatedExecutor, VirtualClock
from actors.scheduling.kv_cache import KVCache
from actors.scheduling.scheduler import Scheduler
from actors.scheduling.step_plan import StepPlan
from cluster.config import EngineConfig
from cluster.outputs import EngineInfo
from tests.engines import TINY_CONFIG, make_engine, request, tokens_of
from tests.random_load import SMALL_ENGINE, RandomLoad, add_preemptions, record_overlapped

BLOCK_SIZE = 16


def simulated_engine(next_token, step_time=lambda plan: 0.01, **changes) -> Engine:
    """An engine of the small sizes whose time is virtual."""
    sizes = {**SMALL_ENGINE, **changes}
    scheduler = Scheduler(
        KVCache(sizes["num_kv_blocks"], BLOCK_SIZE, True),
        sizes["max_num_seqs"],
        sizes["max_num_batched_tokens"],
        sizes["max_model_len"],
    )
    clock = VirtualClock()
    executor = SimulatedExecutor(
        clock,
        step_time,
        next_token,
        max_num_seqs=sizes["max_num_seqs"],
        max_model_len=sizes["max_model_len"],
        block_size=BLOCK_SIZE,
        eos_token_ids=(TINY_CONFIG["eos_token_id"],),
    )
    vocab_size, blocks = TINY_CONFIG["vocab_size"], sizes["num_kv_blocks"]
    info = EngineInfo("simulated", "none", "tiny", sizes["max_model_len"], vocab_size, blocks, BLOCK_SIZE)
    return Engine(scheduler, executor, info, clock)


def state_of(scheduler: Scheduler) -> dict:
    """All that a scheduler knows, for comparison."""

    def known(sequence) -> tuple:
        one = sequence
        return (
            one.request.request_id, one.state, tuple(one.token_ids), tuple(one.block_ids), one.num_computed_tokens,
            one.num_in_flight, one.slot, one.num_preemptions, one.num_cached_tokens,
        )  # fmt: skip

    return {
        "waiting": [known(s) for s in scheduler.waiting],
        "running": [known(s) for s in scheduler.running],
        "leaving": {slot: known(s) for slot, s in scheduler.leaving.items()},
        "free slots": list(scheduler._free_slots),
        "blocks": (scheduler.kv_cache.num_available, scheduler.kv_cache.num_blocks),
        "counters": (
            scheduler.num_preemptions, scheduler.num_prompt_tokens, scheduler.num_cached_prompt_tokens,
            scheduler.num_generated_tokens, scheduler.num_steps, scheduler.num_prefill_tokens,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("num_steps", [400, pytest.param(4_000, marks=pytest.mark.slow)])
def test_random_schedules_end_as_on_the_cpu(tiny_model, num_steps):
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    real, load = make_engine(tiny_model, **SMALL_ENGINE), RandomLoad(seed)
    add_preemptions(real, seed)
    states: list[dict] = []
    step = real.step
    real.step = lambda: (step(), states.append(state_of(real.scheduler)))[0]  # type: ignore[method-assign]
    plans, results = record_overlapped(real, load, num_steps)
    real.close()
    tokens: dict[str, list[int]] = defaultdict(list)
    of_step = {plan.step: plan for plan in plans}
    for result in results:
        for slot, token in zip(result.plain_slots, result.plain_tokens):
            tokens[of_step[result.step].request_ids[slot]].append(token)
        for output in result.outputs:
            if output.token >= 0:
                tokens[output.request_id].append(output.token)

    engine, again = simulated_engine(lambda name, index: tokens[name][index]), RandomLoad(seed)
    add_preemptions(engine, seed)
    engine.record = simulated_plans = []
    for number, expected in enumerate(states):
        if len(simulated_plans) < num_steps:
            again.feed(engine)
        engine.step()
        assert state_of(engine.scheduler) == expected, f"pass {number}"
    assert simulated_plans == plans
    assert not engine.has_work()
    engine.check_integrity()
    assert load.seen["aborted"] and load.seen["preempted"] and load.seen["stopped"]


def test_steps_take_virtual_time_and_overlap():
    engine = simulated_engine(lambda name, index: 5, step_time=lambda plan: 0.001 * plan.num_tokens)
    deltas = engine.generate([request("a", list(range(3, 13)), max_tokens=6)])
    assert tokens_of(deltas["a"]) == [5] * 6
    # Ten tokens of prompt, then five steps of one token, and one that was launched before the end was known.
    assert engine.clock.now() == pytest.approx(0.010 + 0.005, abs=0.0011)
    assert engine.figures()["device_seconds"] == pytest.approx(0.010 + 0.005, abs=0.0011)


def test_a_step_is_planned_shortly_before_the_one_before_it_ends():
    """Who comes meanwhile is in it: a first token takes the rest of the present step and one more, not two."""
    engine = simulated_engine(lambda name, index: 5, step_time=lambda plan: 1.0)
    engine.add_request(request("runs", [3, 4], max_tokens=40))
    for _ in range(8):
        engine.step()
    wait_s = engine.seconds_to_wait()
    assert 0.9 < wait_s < 1.0
    engine.clock.sleep(wait_s)
    assert engine.seconds_to_wait() == 0.0
    came = engine.clock.now()
    engine.add_request(request("comes", [3, 4], max_tokens=1))
    while not any(delta.request_id == "comes" for delta in engine.step().deltas):
        engine.clock.sleep(engine.seconds_to_wait())
    assert engine.clock.now() - came == pytest.approx(1.0 + (1.0 - wait_s), abs=0.01)


def test_a_hundred_thousand_steps_take_no_wall_time_of_their_own():
    engine = simulated_engine(lambda name, index: 7, step_time=lambda plan: 1.0)
    engine.generate([request(str(i), [3, 4], max_tokens=90) for i in range(4)])
    assert engine.clock.now() >= 90.0
    assert engine.seconds_to_wait() == 0.0


def test_a_slot_that_still_runs_without_a_request_is_found(tiny_model):
    engine = simulated_engine(lambda name, index: 5)
    engine.executor.execute_model(
        StepPlan(0, scheduled={}, preempted=[0], request_ids={0: "a"}),
    )
    engine.executor.check_idle()
    engine.add_request(request("a", [3], max_tokens=4))
    engine.step()
    with pytest.raises(RuntimeError, match="still run"):
        engine.executor.check_idle()


def test_engine_scheduling_and_simulation_load_no_paddle():
    program = (
        "import sys, actors.engine.engine, actors.engine.loop, actors.engine.simulated, actors.scheduling.scheduler\n"
        "sys.exit('paddle' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def loaded(**settings) -> Engine:
    return load_simulated_engine(EngineConfig(device="simulated", max_num_seqs=4, max_model_len=256, **settings))


def test_a_loaded_simulation_takes_its_time_and_another_one_goes_on_with_its_answers():
    engine = loaded(simulated_step_s=0.02)
    answers = {
        name: tokens_of(deltas) for name, deltas in engine.generate([request("a", [5] * 20, max_tokens=8)]).items()
    }
    started = engine.clock.now()
    whole = engine.generate([request("b", [5] * 20, max_tokens=8)])["b"]
    assert engine.clock.now() - started >= 8 * 0.02
    assert tokens_of(whole) != answers["a"], "tokens depend on the request"

    begun = request("b", [5] * 20, max_tokens=8)
    begun.output_token_ids = tokens_of(whole)[:3]
    other = loaded(simulated_step_s=0.0001)
    assert tokens_of(other.generate([begun])["b"]) == tokens_of(whole)[3:]
    assert other.info.fingerprint == engine.info.fingerprint
    assert loaded(dummy_seed=1).info.fingerprint != engine.info.fingerprint
