"""Connections on which nothing happens for a while: signs of life, honest ends, bounded patience."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from cluster.api_errors import ApiError, unavailable
from cluster.outputs import FINISH_LENGTH
from deployments.answers import event_stream, whole_answer
from deployments.endpoints import generating
from deployments.http.body import read_body
from deployments.http.keys import ApiKeys
from deployments.start.serve_environment import HAPROXY_ON_LOOPBACK
from tests.deployments.ingress_without_ray import Connection, answered, application
from tests.deployments.played_engines import SlowEngines
from tests.waiting import until

# Of a proxy of which nothing is known: whole answers that take long begin with spaces.
BEHIND_A_PROXY = (b"via", b"1.1 somewhere")


@pytest.fixture
def engines(monkeypatch) -> SlowEngines:
    monkeypatch.setattr(event_stream, "_KEEP_ALIVE_S", 0.02)
    monkeypatch.setattr(whole_answer, "_HEARTBEAT_S", 0.02)
    monkeypatch.setattr(generating, "_STATUS_PATIENCE_S", 0.1)
    monkeypatch.setattr(generating, "_STREAM_STATUS_PATIENCE_S", 0.1)
    return SlowEngines()


async def test_a_silent_stream_that_can_be_taken_up_is_kept_alive_with_comments(engines):
    connection = Connection("/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 2})
    connection.scope["headers"].append((b"bireme-resumable", b"1"))
    task = await answered(engines, connection)
    await until(lambda: connection.body.count(b": keep-alive\n") >= 3, 20)
    assert connection.events[0]["status"] == 200
    engines.deliver([65, 66], FINISH_LENGTH)
    await task
    assert connection.is_complete
    assert connection.body.endswith(b"data: [DONE]\n\n")
    assert len([line for line in connection.body.split(b"\n") if line.startswith(b"data: {")]) == 1


async def test_a_stream_that_cannot_be_kept_alive_ends_with_an_error(engines):
    """A sign of life that fails for a reason that nobody thought of; the client's way is open still."""
    connection = Connection("/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 2})
    send, failures = connection.send, []

    async def failing_once(event: dict) -> None:
        if event.get("body") == b"\n\n" and not failures:
            failures.append(event)
            raise RuntimeError("unexpected")
        await send(event)

    connection.send = failing_once
    await asyncio.wait_for(await answered(engines, connection), 20)
    assert failures
    assert connection.is_complete
    error, done = [line for line in connection.body.split(b"\n") if line.startswith(b"data: ")]
    assert json.loads(error[6:])["error"]["code"] == "internal_error"
    assert done == b"data: [DONE]"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_early_error_has_its_own_status(engines, stream):
    connection = Connection("/v1/completions", {"prompt": "x", "stream": stream})
    task = await answered(engines, connection)
    engines.fail(unavailable("none left", code="engine_dead"))
    await task
    assert connection.events[0]["status"] == 503
    assert json.loads(connection.body)["error"]["code"] == "engine_dead"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_full_queue_refuses_nobody_whose_status_was_sent(engines, stream):
    connection = Connection("/v1/completions", {"prompt": "x", "stream": stream, "max_tokens": 2})
    connection.scope["headers"].append(BEHIND_A_PROXY)
    task = await answered(engines, connection)
    assert not engines.submission.is_admitted
    await until(lambda: connection.events, 20)
    assert connection.events[0]["status"] == 200
    assert engines.submission.is_admitted
    engines.deliver([65, 66], FINISH_LENGTH)
    await task


async def test_a_late_error_of_a_stream_is_its_last_event(engines):
    connection = Connection("/v1/completions", {"prompt": "x", "stream": True})
    task = await answered(engines, connection)
    engines.deliver([65])
    await until(lambda: b"data: " in connection.body, 20)
    engines.fail(unavailable("none left", code="engine_dead"))
    await task
    *_, error, done = [line[6:] for line in connection.body.decode().splitlines() if line.startswith("data: ")]
    assert json.loads(error)["error"]["code"] == "engine_dead"
    assert done == "[DONE]"


async def test_a_late_error_of_a_whole_answer_is_written_and_nobody_can_take_it_for_an_answer(engines):
    connection = Connection("/v1/completions", {"prompt": "x"})
    connection.scope["headers"].append(BEHIND_A_PROXY)
    task = await answered(engines, connection)
    engines.deliver([65])
    await until(lambda: connection.body, 20)
    engines.fail(unavailable("none left", code="engine_dead"))
    # The server closes a connection whose application raises in the middle of an answer.
    with pytest.raises(Exception, match=r"none left|already started"):
        await task
    assert not connection.is_complete
    assert json.loads(connection.body)["error"]["code"] == "engine_dead"


ONE, TWO = (b"x-forwarded-for", b"192.0.2.1"), (b"x-forwarded-for", b"192.0.2.1, 192.0.2.2")


@pytest.mark.parametrize(
    ("haproxy", "headers", "has_spaces"),
    [
        (None, [], False),  # Serve's own proxy, or nothing between
        (None, [ONE], True),
        (None, [(b"forwarded", b"for=192.0.2.1")], True),
        (None, [BEHIND_A_PROXY], True),
        (str(HAPROXY_ON_LOOPBACK), [], False),
        (str(HAPROXY_ON_LOOPBACK), [ONE], False),
        (str(HAPROXY_ON_LOOPBACK), [TWO], True),
        (str(HAPROXY_ON_LOOPBACK), [ONE, ONE], True),
        (str(HAPROXY_ON_LOOPBACK), [BEHIND_A_PROXY], True),
        ("/usr/sbin/haproxy", [], True),  # it splices
        ("", [], True),
    ],
)
async def test_spaces_come_only_where_a_client_may_leave_unnoticed(engines, monkeypatch, haproxy, headers, has_spaces):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0" if haproxy is None else "1")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", haproxy or "")
    connection = Connection("/v1/completions", {"prompt": "x", "max_tokens": 2})
    connection.scope["headers"] += headers
    task = await answered(engines, connection)
    engines.deliver([65])
    if has_spaces:
        await until(lambda: connection.body.startswith(b" "), 20)
    else:
        await asyncio.sleep(0.2)  # ten times as long as until a space
        assert not connection.events
    engines.deliver([66], FINISH_LENGTH)
    await task
    assert connection.is_complete
    assert json.loads(connection.body)["choices"]
    assert connection.body.startswith(b" " if has_spaces else b"{")


async def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_error(engines):
    connection = Connection("/v1/completions", {"prompt": "x"})
    connection._pieces = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    app = application(engines)
    await app(connection.scope, connection.receive, connection.send)
    assert connection.events[0]["status"] == 499
    assert json.loads(connection.body)["error"]["code"] == "request_lost"


async def test_a_body_that_trickles_in_is_given_up():
    async def trickle():
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(ApiError, match=r"within 0\.1 s") as caught:
        await read_body(Request(scope, trickle), 10_000, timeout_s=0.1)
    assert (caught.value.status, caught.value.code) == (408, "request_timeout")
    assert caught.value.headers == {"Connection": "close"}


def routes_of(app: Starlette) -> list[Route]:
    assert app.routes
    return app.routes


@pytest.mark.parametrize("prefix", ["", "/small"])
async def test_every_route_but_health_and_ping_asks_for_the_key(engines, prefix):
    """Whatever routes there are; and paths that only look like the open ones are not open."""
    app = application(engines, ApiKeys(["the key"]))
    paths = [route.path.replace("{model_id:path}", "m") for route in routes_of(app._app._app)]
    assert "/health" in paths
    assert len(paths) > 5
    lookalikes = [
        "/health/x",
        "//health",
        "/x/ping",
        "/healthz",
        "/HEALTH",
        "/v1/../health",
        "/v1/models/health",
        "/health%2f",
        "",
    ]
    for path in [*paths, "/health/", *lookalikes]:
        for method in ("GET", "POST", "HEAD", "OPTIONS"):
            for key in (None, b"Bearer the ke", b"Bearer the key2", b"Basic the key", b"Bearer"):
                connection = Connection(prefix + path, {})
                connection.scope |= {"method": method, "root_path": prefix}
                if key is not None:
                    connection.scope["headers"] = [(b"authorization", key)]
                await app(connection.scope, connection.receive, connection.send)
                status = connection.events[0]["status"]
                assert (status != 401) == (path in ("/health", "/health/", "/ping")), (method, path, key, status)
