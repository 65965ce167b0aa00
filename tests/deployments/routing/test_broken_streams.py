"""Streams through Ray that break: a real runner actor and an ingress's client, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import RayError

from actors.requests import ended_answers
from cluster.outputs import PlainTokens
from tests.deployments.routing.local_answers import MAX_TOKENS, expected, start_many
from tests.deployments.routing.local_engines import LocalRunner, RemoteStream, local_client, start_runner
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")


class BreakingStream(RemoteStream):
    """Breaks a few times, each time a few messages after it was attached, with plain tokens on their way.

    Attributes:
        resumed: what each attach asked for.
        num_lost: plain tokens that were on their way.
    """

    def __init__(
        self,
        runner: LocalRunner,
        times: int,
        before_resuming: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0),
    ) -> None:
        super().__init__(runner)
        self.resumed: list[dict[str, int]] = []
        self.num_lost = 0
        self._times = times
        self._before_resuming = before_resuming

    async def remote(self, subscriber: str, resume: dict[str, int], **options: Any) -> AsyncIterator[Any]:
        if self.resumed:
            await self._before_resuming()
        self.resumed.append(resume)
        num_seen = 0
        async for coming in super().remote(subscriber, resume, **options):
            message = await coming
            num_plain = sum(len(item.token_ids) for item in message if isinstance(item, PlainTokens))
            num_seen += num_plain > 0
            if num_seen == 3 and len(self.resumed) <= self._times:
                self.num_lost += num_plain
                raise RayError("the connection broke")
            yield asyncio.sleep(0, message)


async def test_plain_tokens_that_were_on_a_stream_through_ray_come_once_when_it_is_attached_again(tiny_model):
    runner = await start_runner(tiny_model, "first", 0.01)
    stream = runner.attach = BreakingStream(runner, times=2)
    client, _ = local_client({"first": runner})
    answers = start_many(client, 4)
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * 4
    assert len(stream.resumed) == 3 and stream.num_lost > 0
    assert all(0 < index < MAX_TOKENS for resume in stream.resumed[1:2] for index in resume.values())
    assert all(answer.submission.entry.attempt == 0 for answer in answers), "the engine went on"
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    await client.close()
    await runner.actor.shutdown()


@pytest.mark.parametrize("max_kept_bytes", [0, ended_answers.MAX_KEPT_BYTES])
async def test_who_is_attached_again_after_its_answers_ended_has_them_whole(tiny_model, monkeypatch, max_kept_bytes):
    """From the runner's memory, or where that has been given up, at once from another attempt."""
    monkeypatch.setattr(ended_answers, "MAX_KEPT_BYTES", max_kept_bytes)
    runner = await start_runner(tiny_model, "first", 0.01)
    stream = BreakingStream(runner, 1, lambda: until(lambda: not runner.actor.serving.live.num_unfinished, 20))
    runner.attach = stream
    client, _ = local_client({"first": runner})
    answers = start_many(client, 4)
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 30) == [None] * 4
    assert len(stream.resumed) == 2 and stream.num_lost > 0
    assert {answer.submission.entry.attempt for answer in answers} == {0 if max_kept_bytes else 1}
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    await client.close()
    await runner.actor.shutdown()
