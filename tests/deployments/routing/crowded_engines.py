"""Engines of which one has more requests than slots: set-up of the tests of the balancer."""

from __future__ import annotations

import asyncio

from tests.deployments.routing.local_answers import start_many
from tests.deployments.routing.local_engines import LocalRunner, local_client, start_runner
from tests.waiting import until

STEP_S = 0.01


def num_waiting(runner: LocalRunner) -> int:
    return len(runner.actor.serving.engine.scheduler.waiting)


def num_running(runner: LocalRunner) -> int:
    return len(runner.actor.serving.engine.scheduler.running)


async def crowd(folder, num_ingresses: int):
    """Two engines, clients of the first, and their answers, of which four run and the others wait there."""
    first, second = [await start_runner(folder, name, STEP_S) for name in ("first", "second")]
    clients = [local_client({"first": first}) for _ in range(num_ingresses)]
    answers = [a for n, (client, _) in enumerate(clients) for a in start_many(client, 8, f"i{n}-")]
    await until(lambda: num_waiting(first) == 8 * num_ingresses - 4, 5)
    await asyncio.sleep(0.15)
    return first, second, clients, answers
