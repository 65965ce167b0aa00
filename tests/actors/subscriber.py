"""An ingress as an engine actor in the same process has it."""

from __future__ import annotations

import asyncio
import time

from actors.engine_actor import RunnerActor
from cluster.outputs import EngineLoad, GenerateReply
from tests.engines import deltas_in, request
from tests.waiting import until


def told(reply: GenerateReply) -> tuple[int, str]:
    """What a reply says besides when."""
    return reply.num_tokens, reply.finish_reason


def subscribed(name: str, prompt: list[int], attempt: int = 0, **params):
    made = request(name, prompt, attempt=attempt, **params)
    made.subscriber = "ingress"
    return made


class Subscriber:
    """Collects what an attached stream brings."""

    def __init__(self, actor: RunnerActor, resume: dict[str, int] | None = None) -> None:
        self.messages: list = []
        self.task = asyncio.create_task(self._run(actor, resume or {}))

    async def _run(self, actor, resume):
        async for message in actor.attach("ingress", resume):
            self.messages.append(message)

    def of(self, name: str) -> list:
        """What was said about a request, without the word that it was taken."""
        deltas = [d for message in self.messages for d in deltas_in(message) if d.request_id == name]
        return [delta for delta in deltas if delta.token_ids or delta.finish_reason]

    def loads(self) -> list[EngineLoad]:
        """What was said of the engine's load."""
        return [item for message in self.messages for item in message if isinstance(item, EngineLoad)]

    async def wait_for(self, name: str, count: int) -> None:
        await until(lambda: len(self.of(name)) >= count, 20)


def slow_down(actor: RunnerActor, seconds: float) -> None:
    """Each of its steps takes so much longer."""
    model = actor.serving.engine.executor.model
    forward = model.forward
    model.forward = lambda *args: (time.sleep(seconds), forward(*args))[1]
