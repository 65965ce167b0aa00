"""An answer is taken up by whoever began it, as it was, and by one connection at a time; events that are made up buy nothing."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from types import SimpleNamespace

import pytest

from cluster.api_errors import overloaded
from cluster.outputs import TokenDelta
from deployments.http.keys import ApiKeys
from deployments.metrics.request_events import RequestEvents
from deployments.openai_api.answers.event_ids import EventIds, ResumePoint
from tests.deployments.ingress_without_ray import Connection, application_of, service_of
from tests.deployments.played_engines import Engines
from tests.waiting import until

KEYS = ApiKeys(["first-key", "second-key"])
PATH = "/v1/completions"
BODY = {"prompt": "by", "seed": 1, "stream": True, "return_token_ids": True, "max_tokens": 20, "n": 2}


def _has_events(connection: Connection, count: int) -> bool:
    return connection.body.count(b"\nid: ") == count


class HoldingEngines(Engines):
    """Engines that hold what they are given until it is cancelled.

    Attributes:
        open: what they hold, by request id.
        is_full: nothing new is taken.
    """

    def __init__(self) -> None:
        super().__init__([])
        self.events = RequestEvents()
        self.open: dict = {}
        self.most = 0
        self.is_full = False

    def check_room(self, num_sequences, tenant=""):
        if self.is_full:
            raise overloaded("full", None)

    def submit(self, entry, deliver, fail):
        entry.fingerprint = "f"
        self.open[entry.request_id] = entry, deliver
        self.most = max(self.most, len(self.open))
        return SimpleNamespace(entry=entry, is_admitted=entry.attempt > 0)

    def cancel(self, submission):
        self.open.pop(submission.entry.request_id, None)

    def deliver(self, token: int) -> None:
        """One more token of each."""
        for entry, deliver in list(self.open.values()):
            index = len(entry.output_token_ids)
            entry.output_token_ids.append(token)
            deliver(TokenDelta(entry.request_id, entry.attempt, index, [token]))


class Server:
    """An ingress, and connections to it."""

    def __init__(self) -> None:
        self.engines = HoldingEngines()
        service = service_of(self.engines)
        self.live = service._live
        self._app = application_of(service, KEYS)
        self.tasks: list[asyncio.Task] = []

    def ask(
        self,
        body: dict,
        last_event_id: str | None = None,
        key: str = "first-key",
        path: str = PATH,
        resumable: str = "1",
    ) -> Connection:
        connection = Connection(path, body)
        headers = {"authorization": f"Bearer {key}", "bireme-resumable": resumable}
        headers |= {} if last_event_id is None else {"last-event-id": last_event_id}
        connection.scope["headers"] += [(name.encode(), value.encode()) for name, value in headers.items()]
        connection.task = asyncio.create_task(self._app(connection.scope, connection.receive, connection.send))
        self.tasks.append(connection.task)
        return connection

    async def begin(self) -> tuple[Connection, str, dict]:
        """An answer of two choices with a token each: its connection, the id of its last event, and what its client has."""
        connection = self.ask(BODY)
        await until(lambda: len(self.engines.open) == 2, 10)
        self.engines.deliver(65)
        await until(partial(_has_events, connection, 2), 10)
        event_id = connection.body.decode().rsplit("\nid: ", 1)[1].split("\n")[0]
        return connection, event_id, {"fingerprint": "f", "choices": [{"token_ids": [65]}, {"token_ids": [65]}]}

    async def refusal(self, *request, **options) -> dict:
        """The error object of a request that is refused with status 400."""
        connection = self.ask(*request, **options)
        await asyncio.wait_for(connection.task, 10)
        assert connection.events[0]["status"] == 400, connection.body
        return json.loads(connection.body)["error"]

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def server():
    made = Server()
    yield made
    await made.close()
    assert not made.engines.open and not len(made.live)


async def test_a_made_up_event_is_refused_before_its_body_is_read(server):
    server.engines.is_full = True
    made_up = EventIds(b"x" * 32).sign(ResumePoint("cmpl-" + "0" * 32, 2**31, 2, 0, 0, "A" * 16))
    resume = {"fingerprint": "f", "choices": [{"token_ids": [65]}] * 2}
    for event_id in (made_up, "cmpl-" + "0" * 32 + ":1:2:0"):
        connection = server.ask({**BODY, "resume": resume}, event_id)
        await asyncio.wait_for(connection.task, 10)
        assert connection.events[0]["status"] == 400
        assert json.loads(connection.body)["error"]["code"] == "invalid_event_id"
        assert connection._pieces
    assert not server.engines.open


async def test_a_header_that_is_refused_starts_nothing(server):
    error = await server.refusal(BODY, resumable="2")
    assert error["param"] == "bireme-resumable"
    assert not server.engines.open


async def test_a_stream_without_ids_is_none_that_another_takes_up(server):
    connection = server.ask(BODY, resumable="0")
    await until(lambda: len(server.engines.open) == 2, 10)
    server.engines.deliver(65)
    await until(lambda: connection.body.count(b"data: {") == 2, 10)
    assert b"\nid: " not in connection.body and not len(server.live)


async def test_an_answer_is_taken_up_past_a_full_queue_as_it_was_and_not_otherwise(server):
    first, event_id, has = await server.begin()
    first.task.cancel()
    await until(lambda: not server.engines.open, 10)
    server.engines.is_full = True
    swapped = {**has, "choices": [{"token_ids": [65, 65]}, {"token_ids": []}]}
    changes = [
        {"prompt": "bye bye " * 4},
        {"max_tokens": 40},
        {"max_tokens": None},
        {"resume": {**has, "fingerprint": "g"}},
        {"resume": {**has, "choices": [{"token_ids": [65]}, {"token_ids": [66]}]}},
        {"resume": {**has, "choices": [{"token_ids": [65]}, {"token_ids": [65], "finish_reason": "stop"}]}},
        {"resume": swapped},
        {"n": 4, "resume": {**has, "choices": [*has["choices"], {"token_ids": []}, {"token_ids": []}]}},
        {"n": 1, "prompt": ["by", "by"]},
    ]
    for change in changes:
        error = await server.refusal({**BODY, "resume": has, **change}, event_id)
        assert error["param"] == "resume" and "the same prompt or messages, n and max_tokens" in error["message"]
    error = await server.refusal({**BODY, "resume": has}, event_id, key="second-key")
    assert error["code"] == "invalid_event_id"
    error = await server.refusal({"messages": [], "resume": has}, event_id, path="/v1/chat/completions")
    assert error["param"]
    assert not server.engines.open
    # What does not make an answer longer is the client's.
    again = server.ask({**BODY, "resume": has, "stream_options": {"include_usage": True}, "user": "x"}, event_id)
    await until(lambda: len(server.engines.open) == 2, 10)
    server.engines.deliver(66)
    await until(partial(_has_events, again, 2), 10)
    assert all(entry.attempt == 1 for entry, _ in server.engines.open.values())


async def test_one_connection_at_a_time_gets_an_answer_however_often_its_event_is_sent(server):
    first, event_id, has = await server.begin()
    count = 200
    again = [server.ask({**BODY, "resume": has}, event_id) for _ in range(count)]
    await until(lambda: sum(connection.task.done() for connection in [first, *again]) == count, 30)
    # The new one has its places before the old one gives its own back.
    assert len(server.engines.open) == 2 and server.engines.most <= 4 and len(server.live) == 1
    (newest,) = [connection for connection in again if not connection.task.done()]
    ended = [json.loads(line[6:])["error"] for line in first.body.decode().split("\n") if '"error"' in line]
    assert [error["code"] for error in ended] == ["answer_taken_up"]
    server.engines.deliver(66)
    await until(partial(_has_events, newest, 2), 10)


async def test_the_events_of_an_answer_taken_up_are_as_good_as_those_before(server):
    connection, event_id, has = await server.begin()
    for token in (66, 67, 68):
        older, connection = connection, server.ask({**BODY, "resume": has}, event_id)
        await asyncio.wait_for(older.task, 10)
        server.engines.deliver(token)
        await until(partial(_has_events, connection, 2), 10)
        event_id = connection.body.decode().rsplit("\nid: ", 1)[1].split("\n")[0]
        for choice in has["choices"]:
            choice["token_ids"].append(token)
