"""An ingress in the test's own process, and connections to it that are no more than ASGI messages."""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp

from deployments.admin.siblings import Siblings
from deployments.answers.request_line import RequestLines
from deployments.endpoints.application import IngressApplication
from deployments.endpoints.generating import GeneratingEndpoints
from deployments.endpoints.model_endpoints import ModelEndpoints
from deployments.endpoints.model_service import ModelService
from deployments.endpoints.operator_endpoints import OperatorEndpoints
from deployments.http.keys import ApiKeys
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.service import OpenAiService
from deployments.routing.waiting.turns import Turns
from tests.actors.text.tiny_tokenizer import byte_tokenizer
from tests.deployments.played_engines import Engines, SlowEngines
from tests.waiting import until

MAX_CHOICES = 4


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


def service_of(engines: Engines) -> OpenAiService:
    """Of a model "m" that takes 64 tokens."""
    tokenizer = byte_tokenizer()
    return OpenAiService(engines, tokenizer, "m", ModelLimits(64, tokenizer.vocab_size), MAX_CHOICES)


def application_of(
    service: OpenAiService,
    keys: ApiKeys | None = None,
    max_prompt_bytes: int | None = 200_000,
    max_choices: int = MAX_CHOICES,
) -> ASGIApp:
    """As Serve has it answer, with everything that needs no engine client."""
    model = ModelService(max_choices, max_prompt_bytes)
    model.known(service)
    endpoints = IngressApplication(
        GeneratingEndpoints(model, Turns(), RequestLines("m")),
        ModelEndpoints(model),
        OperatorEndpoints(model, lambda: None, lambda: False, Siblings(), None, block_size=16),
        keys or ApiKeys([]),
        "refuse",
    )
    return endpoints.build()


def application(engines: Engines, keys: ApiKeys | None = None) -> ASGIApp:
    """The same in front of these engines."""
    return application_of(service_of(engines), keys)


async def answered(engines: SlowEngines, connection: Connection) -> asyncio.Task:
    """Under way: the engines have what the connection asks for."""
    app = application(engines)
    task = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
    await until(lambda: hasattr(engines, "deliver"), 20)
    return task
