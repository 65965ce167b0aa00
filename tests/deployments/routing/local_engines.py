"""Runner actors in this process, and handles to them: what Ray and Serve do, in a few lines."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ray.exceptions import ActorDiedError

from actors.engine_actor import RunnerActor
from cluster.config import EngineConfig
from cluster.outputs import AttachRequired, NotBegun
from cluster.request import EngineRequest, Followed
from cluster.routing.candidates import EngineCandidate, RequestView
from cluster.routing.policies import Policy
from deployments.routing.engine_client import EngineClient
from deployments.routing.router.engine_choices import EngineChoices


class RemoteMethod:
    """A method of an actor as its handle has it."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *args: Any, **kwargs: Any) -> asyncio.Future:
        return asyncio.ensure_future(self._method(*args, **kwargs))


class RemoteStream:
    """``attach`` as a streaming call."""

    def __init__(self, runner: LocalRunner) -> None:
        self._runner = runner

    def options(self, **options: Any) -> RemoteStream:
        return self

    async def remote(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        self._runner.check_alive()
        async for message in self._runner.actor.attach(*args, **kwargs):
            yield asyncio.sleep(0, message)
        self._runner.check_alive()


class LocalRunner:
    """The handle of a runner actor in this process, on another node as far as its ingress knows."""

    def __init__(self, actor: RunnerActor) -> None:
        self.actor = actor
        self.is_dead = False
        self.attach = RemoteStream(self)
        self.token_socket = RemoteMethod(lambda: asyncio.sleep(0, ("another node", "")))

    def __getattr__(self, name: str) -> RemoteMethod:
        method = getattr(self.actor, name)

        async def call(*args: Any) -> Any:
            self.check_alive()
            answer = await method(*args)
            self.check_alive()
            return answer

        return RemoteMethod(call)

    def check_alive(self) -> None:
        """Raise as a call to an actor whose process is gone does."""
        if self.is_dead:
            raise ActorDiedError

    def kill(self) -> None:
        """Its process is gone: calls fail, those under way too, and its streams end."""
        self.is_dead = True
        self.actor.serving.fail(RuntimeError("killed"))


async def start_runner(folder: Path, engine_id: str, step_s: float = 0.0, **settings: Any) -> LocalRunner:
    """A runner with the tiny model; each step takes at least so long."""
    config = EngineConfig(
        model=str(folder), load_format="dummy", **{"max_num_seqs": 4, "max_num_batched_tokens": 64, **settings}
    )
    actor = RunnerActor(config, engine_id)
    await actor.start()
    model = actor.serving.engine.executor.model
    forward = model.forward
    model.forward = lambda *args: (time.sleep(step_s), forward(*args))[1]
    return LocalRunner(actor)


class LocalFollow:
    """Calls that follow requests which went ahead, as a replica answers them."""

    def __init__(self, handle: LocalHandle) -> None:
        self._handle = handle

    def remote(self, followed: Followed) -> LocalReplies:
        return LocalReplies(self._handle, followed)


class LocalReplies:
    """What such a call is answered with."""

    def __init__(self, handle: LocalHandle, followed: Followed) -> None:
        self._handle = handle
        self._runner = handle.runners[followed.engine_id]
        self._engine_id = followed.engine_id
        ahead = self._runner.actor.serving.requests.ahead
        self._running = {key: ahead.take(key) for key in followed.keys}

    def cancel(self) -> None:
        for key, running in self._running.items():
            if running is not None:
                self._runner.actor.serving.requests.abort(key)

    async def __aiter__(self) -> AsyncIterator[Any]:
        self._runner.check_alive()
        for key, running in self._running.items():
            reply = NotBegun(self._engine_id)
            if running is not None:
                await asyncio.wait((running,))
                self._runner.check_alive()
                reply = running.result()._replace(engine_id=self._engine_id)
            self._handle.sent.append((*key, self._engine_id, False))
            yield [(key, reply)]


class LocalHandle:
    """The engine deployment behind one ingress: a request without a place goes to the first engine that lives, or where a policy
    says.

    Attributes:
        runners: by engine id, those that the router knows.
        sent: (request id, attempt, engine id, whether it was moved) of each call.
        policy: chooses among those that are open to the request, as the router does; None: the first that lives.
    """

    def __init__(self, choices: EngineChoices, runners: dict[str, LocalRunner]) -> None:
        self.choices = choices
        self.runners: dict[str, LocalRunner] = {}
        self.sent: list[tuple[str, int, str, bool]] = []
        self.policy: Policy | None = None
        self.generate = RemoteMethod(self._generate)
        for engine_id, runner in runners.items():
            self.add(engine_id, runner)

        self.follow = LocalFollow(self)

    def options(self, **options: Any) -> LocalHandle:
        return self

    def add(self, engine_id: str, runner: LocalRunner) -> None:
        """The router learns of an engine."""
        self.runners[engine_id] = runner
        self.choices.set_engines({known: self.fingerprint(known) for known in self.runners})

    def fingerprint(self, engine_id: str) -> str:
        return self.runners[engine_id].actor.serving.info.fingerprint

    async def _generate(self, request: EngineRequest, fingerprint: str, last_resort: bool) -> Any:
        alive = [known for known, runner in self.runners.items() if not runner.is_dead]
        engine_id = self.choices.place(request.request_id) or self._best(request, alive)
        self.choices.chose(request, engine_id)
        runner = self.runners[engine_id]
        reply = await runner.generate.remote(request)
        if isinstance(reply, AttachRequired):
            return reply._replace(runner=runner)
        self.sent.append((request.request_id, request.attempt, engine_id, request.moved))
        return reply._replace(engine_id=engine_id)

    def _best(self, request: EngineRequest, alive: list[str]) -> str:
        if self.policy is None:
            return alive[0]
        open_to = self.choices.open_to(request)
        weight = self.choices.token_weight
        views = [EngineCandidate(e, token_weight=weight(e), is_open=open_to is None or e in open_to) for e in alive]
        return self.policy(RequestView(), views, random.Random(0))[0].engine_id


def local_client(runners: dict[str, LocalRunner], max_queue_share: float = 1.0) -> tuple[EngineClient, LocalHandle]:
    """An ingress's client of these engines."""
    choices = EngineChoices()
    handle = LocalHandle(choices, runners)
    return EngineClient(handle, choices, max_attempts=3, max_queue_share=max_queue_share), handle


def attach(client: EngineClient, handle: LocalHandle, engine_id: str) -> None:
    """Open the token stream of an engine before it is needed."""
    client._streams.attach(AttachRequired(engine_id, handle.runners[engine_id], handle.fingerprint(engine_id)))
