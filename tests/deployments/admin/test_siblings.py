"""What one ingress asks all others: bounded, and over when nobody waits for it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.api_errors import ApiError
from deployments.admin import siblings
from deployments.admin.siblings import Happened, Siblings
from deployments.ray_private.serve import answers_of_each
from tests.jumping_loop import JumpingLoop
from tests.waiting import until


class Replicas:
    """Stands where the handle is: Serve says after ``told_after_s`` which replicas there are, and none of them answers."""

    def __init__(self, count: int, told_after_s: float = 0.0) -> None:
        self._count, self._told_after_s = count, told_after_s
        self.asked = self.cancelled = 0

    def broadcast(self, method: str, *arguments: Any) -> Any:
        return SimpleNamespace(_fetch_replica_results_async=self._calls)

    async def _calls(self) -> list[Any]:
        await asyncio.sleep(self._told_after_s)
        return [SimpleNamespace(get_async=self._never)] * self._count

    async def _never(self) -> None:
        self.asked += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def test_questions_end_when_who_asked_has_gone():
    replicas: Any = Replicas(3)
    question = asyncio.create_task(answers_of_each(replicas, "trace_here", timeout_s=60.0))
    await until(lambda: replicas.asked == 3, 5)
    question.cancel()
    await asyncio.wait([question])
    await until(lambda: replicas.cancelled == 3, 5)


def test_both_waits_have_one_deadline():
    async def took() -> float:
        loop, replicas = asyncio.get_running_loop(), cast(Any, Replicas(2, told_after_s=1.5))
        began = loop.time()
        assert await answers_of_each(replicas, "trace_here", timeout_s=2.0) == ([], 2)
        return loop.time() - began

    loop = JumpingLoop()
    try:
        assert loop.run_until_complete(took()) == pytest.approx(2.0, abs=0.01)
    finally:
        loop.close()


async def test_who_asks_what_happened_meanwhile_gets_the_same_answer():
    asks, replicas = Siblings(), cast(Any, Replicas(3))
    replicas.deployment_name = "ingress"
    asks._handle = replicas
    own = Happened("one", {"bireme_moves": 1}, {})
    assert await asks.happened(own, {"ingress": {"RUNNING": 1}}) == ([own], 0)
    assert replicas.asked == 0
    gone, *others = [asyncio.create_task(asks.happened(own, {"ingress": {"RUNNING": 3}})) for _ in range(20)]
    await until(lambda: replicas.asked == 3, 5)
    gone.cancel()
    assert await asyncio.gather(*others) == 19 * [([own], 2)]
    assert replicas.asked == replicas.cancelled == 3


async def test_only_so_many_names_are_looked_for_at_once():
    asks = Siblings()
    replicas: Any = Replicas(2)
    asks._handle = replicas
    most = siblings._MOST_AT_ONCE
    questions = [asyncio.create_task(asks.find_trace(str(number), "")) for number in range(most)]
    await until(lambda: replicas.asked == 2 * most, 5)
    with pytest.raises(ApiError) as refused:
        await asks.find_trace("one more", "")
    assert (refused.value.status, replicas.asked) == (429, 2 * most)
    questions[0].cancel()
    await asyncio.wait(questions[:1])
    another = asyncio.create_task(asks.find_trace("one more", ""))
    await until(lambda: replicas.asked == 2 * most + 2, 5)
    for question in (*questions, another):
        question.cancel()
    await asyncio.wait([*questions, another])
