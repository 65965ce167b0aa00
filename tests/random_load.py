"""Random requests that come, are aborted and are preempted in random steps of a tiny engine, and a way to replay what it did.

Everything follows from a seed, so that a failure can be repeated.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from actors.engine.engine import Engine
from actors.runner.model_runner import ModelRunner
from actors.scheduling.prefill_delay import PrefillDelay
from actors.scheduling.scheduler import Scheduler
from actors.scheduling.step_plan import StepPlan, StepResult
from cluster.request import EngineRequest
from tests.engines import request

LIMIT = 96  # tokens of a request, prompt and answer: six blocks of 16
# Too few blocks for the slots, and a budget that cuts prompts into chunks.
SMALL_ENGINE = {"max_num_seqs": 6, "num_kv_blocks": 10, "max_num_batched_tokens": 24, "max_model_len": LIMIT}


class RandomLoad:
    """Keeps an engine of the tiny model busy.

    Attributes:
        seen: how often each kind of trouble came up.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.seen: Counter[str] = Counter()
        self._count = 0

    def feed(self, engine: Engine) -> None:
        """Before a step: now and then nothing, a request, several at once, or an abort."""
        scheduler = engine.scheduler
        waiting = len(scheduler.waiting)
        chance = 0.35 if waiting < 3 else 0.02
        if self.rng.random() < chance:
            for _ in range(int(self.rng.choice([1, 1, 1, 3]))):
                engine.add_request(self.request())
                self.seen["arrived"] += 1
        if self.rng.random() < 0.02 and (live := list(scheduler.request_keys())):
            engine.abort(*live[int(self.rng.integers(len(live)))])
            self.seen["aborted"] += 1

    def request(self) -> EngineRequest:
        """One request with a name of its own."""
        rng = self.rng
        self._count += 1
        # Some begin alike, so that prefixes are found in the cache.
        head = [[11] * 17, [12, 13] * 16, [], [], []][int(rng.integers(5))]
        prompt = head + rng.integers(3, 128, int(rng.integers(1, 16))).tolist()
        params: dict = {"max_tokens": min(int(rng.choice([1, 6, 25, 40, 60])), LIMIT - len(prompt))}
        if rng.random() < 0.6:
            params |= {"temperature": float(rng.choice([0.3, 1.0])), "seed": int(rng.integers(1000))}
            params |= [{}, {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.7}][
                int(rng.integers(5))
            ]
        if rng.random() < 0.3:
            params |= [
                {"repetition_penalty": 1.2},
                {"presence_penalty": 1.0, "frequency_penalty": 0.3},
                {"logit_bias": {17: 2.0, 40: -1.0}},
                {"min_tokens": params["max_tokens"] // 2},
                {"allowed_token_ids": tuple(range(20, 60)), "bad_token_seqs": ((21,), (22, 23), (30, 31, 32))},
            ][int(rng.integers(5))]
        if rng.random() < 0.3:
            params["logprobs"] = int(rng.integers(0, 5))
        if rng.random() < 0.05:
            params["prompt_logprobs"] = 1
        if rng.random() < 0.3:
            params["stop_token_ids"] = tuple(rng.integers(0, 128, 3).tolist())
        if rng.random() < 0.3:
            params["stop_token_seqs"] = (
                (int(rng.integers(128)),),
                tuple(rng.integers(0, 128, 2).tolist()),
                (11, 11, 11),
            )
        return request(str(self._count), prompt, priority=int(rng.integers(3)), **params)


class _UnluckyScheduler(Scheduler):
    """Preempts running sequences at random, besides those that must give way."""

    rng: np.random.Generator

    def _schedule_decodes(self, plan, owners):
        if self.running and self.rng.random() < 0.04:
            victim = self.running[int(self.rng.integers(len(self.running)))]
            if not victim.will_have_finished:
                self._preempt(victim, plan, owners)
        super()._schedule_decodes(plan, owners)


def add_preemptions(engine: Engine, seed: int) -> None:
    """Before the first request: running sequences are preempted in random steps, and prompts wait for others or not."""
    old = engine.scheduler
    scheduler = _UnluckyScheduler(
        old.kv_cache,
        old.max_num_seqs,
        old.max_num_batched_tokens,
        old.max_model_len,
        prefill_delay=PrefillDelay(seed % 4),
    )
    scheduler.rng = np.random.default_rng(seed)
    engine.scheduler = scheduler


def add_pauses(runner: ModelRunner, rng: np.random.Generator, slow_device: Callable[[float], None]) -> None:
    """Let host and device wait for each other at random: before a launch, before a save, and inside the device's queue."""
    launch, save = runner.launch_forward, runner.save_output

    def pause() -> None:
        if rng.random() < 0.15:
            time.sleep(rng.random() * 1e-3)

    def launch_late(plan: StepPlan) -> None:
        pause()
        if rng.random() < 0.1:
            slow_device(rng.random() * 1e-3)
        launch(plan)

    def save_late() -> StepResult:
        pause()
        return save()

    runner.launch_forward, runner.save_output = launch_late, save_late  # type: ignore[method-assign]


def record_overlapped(engine: Engine, load: RandomLoad, num_steps: int) -> tuple[list[StepPlan], list[StepResult]]:
    """What the scheduler asked of an overlapped engine in so many steps under the load, and what came of it."""
    plans: list[StepPlan] = []
    results: list[StepResult] = []
    engine.record = plans
    execute = engine.executor.execute_model_overlap

    def execute_and_keep(plan: StepPlan | None) -> StepResult | None:
        result = execute(plan)
        if result is not None:
            results.append(result)
        return result

    engine.executor.execute_model_overlap = execute_and_keep  # type: ignore[method-assign]
    while len(plans) < num_steps:
        load.feed(engine)
        engine.step()
    while engine.has_work():
        engine.step()
    engine.check_integrity()
    scheduler = engine.scheduler
    load.seen.update(preempted=scheduler.num_preemptions, found_in_cache=scheduler.num_cached_prompt_tokens)
    for plan in plans:
        decodes = sum(count == 1 for count in plan.scheduled.values())
        load.seen.update(
            mixed=plan.has_prefill and decodes > 0,
            decode_only=bool(plan.scheduled) and not plan.has_prefill,
            held=not {insert.slot for insert in plan.inserts} <= plan.scheduled.keys(),
            penalties=plan.needs.penalties,
            logprobs=plan.needs.num_logprobs >= 0,
        )
    for result in results:
        load.seen.update(stopped=sum(output.finish_reason == "stop" for output in result.outputs))
    return plans, results


def _check_trouble(load: RandomLoad, num_steps: int) -> None:
    """A quiet run proves little: so many of each kind, about a quarter of what the load makes on average. A short one may be
    without the rarest."""
    wanted = {
        "arrived": 20, "mixed": 20, "decode_only": 20, "penalties": 20, "logprobs": 20, "found_in_cache": 20,
        "preempted": 100, "aborted": 400, "stopped": 400,
    }  # fmt: skip
    for kind, one_in in wanted.items():
        least = num_steps // one_in
        assert least < 2 or load.seen[kind] >= least, (kind, load.seen)


def check_random_steps(make: Callable[[int], Engine], num_steps: int) -> None:
    """A plain runner must give every result of an overlapped one under a random load: tokens, finish reasons, and
    log-probabilities, bit by bit. ``make`` gives an engine with random pauses from a seed.
    """
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    engine, load = make(seed), RandomLoad(seed)
    add_preemptions(engine, seed)
    plans, results = record_overlapped(engine, load, num_steps)
    engine.close()
    _check_trouble(load, num_steps)
    assert len(plans) == len(results)
    plain = make(seed + 1)
    for plan, expected in zip(plans, results, strict=True):
        assert plain.executor.execute_model(plan) == expected, f"step {plan.step}"
    plain.close()
    print(f"{len(plans)} steps", dict(load.seen))
