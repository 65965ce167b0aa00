"""An ingress in the test's own process, and connections to it that are no more than ASGI messages."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

from starlette.types import ASGIApp

from deployments.answers.request_line import RequestLines
from deployments.http.keys import ApiKeys
from deployments.ingress import OpenAiIngress
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.service import OpenAiService
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.waiting.turns import Turns
from tests.actors.text.tiny_tokenizer import byte_tokenizer
from tests.deployments.played_engines import Engines, SlowEngines
from tests.waiting import until


class Connection:
    """The server's side of one HTTP exchange: ``events`` are the ASGI messages that were sent."""

    def __init__(self, path: str, body: dict) -> None:
        headers = [(b"content-type", b"application/json")]
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        self.events: list[dict] = []
        self._pieces = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive(self) -> dict:
        if self._pieces:
            return self._pieces.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, event: dict) -> None:
        self.events.append(event)

    @property
    def body(self) -> bytes:
        return b"".join(event["body"] for event in self.events[1:])

    @property
    def is_complete(self) -> bool:
        return bool(self.events) and not self.events[-1].get("more_body", True)


def serving(engines: Engines) -> OpenAiIngress:
    """An ingress without Ray around it."""
    tokenizer = byte_tokenizer()
    made = object.__new__(OpenAiIngress)
    made._turns = Turns()
    made._keys = ApiKeys([])
    made._config = SimpleNamespace(max_prompt_bytes=200_000, max_choices=4, allowed_origins=[])
    made._service = OpenAiService(engines, tokenizer, "m", ModelLimits(64, tokenizer.vocab_size), 4)
    made._starting = made._expected = None
    made._choices = EngineChoices()
    made._lines = RequestLines("m")
    return made


def application(engines: Engines) -> ASGIApp:
    """As Serve has it answer."""
    return serving(engines).__serve_build_asgi_app__()


async def answered(engines: SlowEngines, connection: Connection) -> asyncio.Task:
    """Under way: the engines have what the connection asks for."""
    app = application(engines)
    task = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
    await until(lambda: hasattr(engines, "deliver"), 20)
    return task
