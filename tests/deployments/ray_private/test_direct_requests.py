"""Requests past Serve's layers look to clients, to the application and in Serve's counts as those that pass them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private import replica as serve_replica
from ray.serve._private.common import DeploymentID, RequestProtocol
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.http_util import ASGIAppReplicaWrapper, RequestIdMiddleware
from ray.serve._private.logging_utils import log_access_log_filter
from ray.serve._private.utils import Semaphore
from starlette.types import ASGIApp

from deployments.http.server import short_way
from deployments.http.server.door import HttpDoor
from deployments.http.server.short_way import open_short_way
from deployments.ray_private import direct_requests
from deployments.ray_private.direct_requests import DirectRequests
from deployments.ray_private.serve import request_id

PATH = "/v1/completions"
LIMIT = 2


class Wrapped(ASGIAppReplicaWrapper):
    def __del__(self) -> None:  # type: ignore[override]
        """Serve's waits for the end of a lifespan."""


def replica_of(app: ASGIApp, prefix: str = "/") -> Any:
    """Serve's own object around ``app``, as far as a request sees it."""
    metrics: Any = object.__new__(serve_replica.ReplicaMetricsManager)
    vars(metrics).update(
        _num_ongoing_requests=0, _ingress_ongoing_requests=Counter(), _cached_metrics_enabled=True,
        _ingress=True, _ingress_metrics={RequestProtocol.HTTP: None},
        _user_code_time_accumulator=SimpleNamespace(add=lambda ms: None),
        _max_processing_latency_trackers=defaultdict(lambda: SimpleNamespace(add=lambda ms: None)),
        _cached_latencies=defaultdict(list), _cached_request_counter=Counter(), _cached_error_counter=Counter(),
        _cached_ingress_request_counter=defaultdict(Counter),
        _cached_ingress_processing_latencies=defaultdict(lambda: defaultdict(list)),
        _cached_ingress_request_error_counter=defaultdict(Counter),
        _cached_deployment_request_error_counter=defaultdict(Counter),
    )  # fmt: skip
    wrapped = Wrapped(None)
    wrapped._asgi_app = app
    user: Any = object.__new__(serve_replica.UserCallableWrapper)
    vars(user).update(
        _run_user_code_in_separate_thread=False, _user_code_event_loop=asyncio.get_running_loop(), _callable=wrapped,
        _cached_user_method_info={}, _is_function=False, _is_enabled_for_debug=False, _local_testing_mode=False,
        _run_sync_methods_in_threadpool=False, _raise_if_not_initialized=lambda name: None,
    )  # fmt: skip
    replica: Any = object.__new__(serve_replica.Replica)
    vars(replica).update(
        _user_callable_initialized=True, _user_callable_asgi_app=None, _user_callable_wrapper=user, _ingress=True,
        _route_prefix=prefix, _deployment_id=DeploymentID("OpenAiIngress", "default"), _quiescing=False,
        _http_options=SimpleNamespace(request_timeout_s=None), _num_queued_requests=0, _reserved_slots=set(),
        _access_log_context={"serve_access_log": True}, _deployment_config=DeploymentConfig(max_ongoing_requests=LIMIT),
        _semaphore=Semaphore(lambda: LIMIT), _metrics_manager=metrics,
    )  # fmt: skip
    return replica


class App:
    """Answers as its client's path says; notes what it saw."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.go_on = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        self.seen.append((scope["path"], scope.get("root_path"), request_id()))
        body = await receive()
        what = body["body"]
        if what == b"raises":
            raise LookupError("nothing there")
        if what == b"leaves":
            while (await receive())["type"] != "http.disconnect":
                pass
            await asyncio.sleep(0.05)  # Serve cancels it meanwhile
            return
        if what == b"waits":
            await self.go_on.wait()
        status = 400 if what == b"refused" else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await send({"type": "http.response.body", "body": b"2"})


class Exchange:
    """One request and what came back."""

    def __init__(self, body: bytes, headers: list[tuple[bytes, bytes]], path: str) -> None:
        self.scope = {
            "type": "http", "method": "POST", "path": path, "root_path": "", "headers": headers,
            "client": ("10.0.0.1", 5), "query_string": b"",
        }  # fmt: skip
        self.sent: list[dict] = []
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]
        self.leave = asyncio.Event()

    async def receive(self) -> dict:
        if self._messages:
            return self._messages.pop(0)
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        self.sent.append(message)


@pytest.fixture(autouse=True)
def beside_haproxy(monkeypatch) -> None:
    """What this process's environment would say in a replica."""
    monkeypatch.setattr(serve_replica.ReplicaMetricsManager, "_is_direct_ingress", True)
    monkeypatch.setattr(short_way, "_open", [])
    monkeypatch.setattr(serve_replica, "RAY_SERVE_ENABLE_DIRECT_INGRESS", True)


class Server:
    """What HAProxy speaks to."""

    def __init__(self, monkeypatch, is_short: bool, prefix: str = "/") -> None:
        # As in a replica without a log of accesses. The test's runner has put its own here by now.
        handler = logging.NullHandler()
        handler.addFilter(log_access_log_filter)
        monkeypatch.setattr(direct_requests.logger, "handlers", [handler])
        self.app = App()
        self.replica = replica_of(self.app, prefix)
        monkeypatch.setattr(direct_requests, "replica_here", lambda: self.replica if is_short else None)
        self.way = DirectRequests(self.app, [PATH])
        open_short_way(self.way)
        self._asgi = HttpDoor(RequestIdMiddleware(self.replica._direct_ingress_asgi))

    async def ask(self, body: bytes, headers=(), path: str = PATH, leaves: bool = False) -> Exchange:
        exchange = Exchange(body, list(headers), path)
        task = asyncio.create_task(self._asgi(exchange.scope, exchange.receive, exchange.send))
        if leaves:
            await asyncio.sleep(0.02)
            exchange.leave.set()
        await task
        return exchange

    @property
    def counts(self) -> dict[str, Any]:
        metrics = self.replica._metrics_manager
        names = [name for name in vars(metrics) if name.endswith("_counter")]
        latencies = metrics._cached_ingress_processing_latencies[RequestProtocol.HTTP]
        return {
            **{name: dict(getattr(metrics, name)) for name in names},
            "latencies": {route: len(values) for route, values in metrics._cached_latencies.items()},
            "ingress latencies": {tags: len(values) for tags, values in latencies.items()},
            "ongoing": (metrics._num_ongoing_requests, dict(metrics._ingress_ongoing_requests)),
            "places": self.replica._semaphore._value,
        }


NAMED = [(b"x-request-id", b"mine")]


@pytest.mark.parametrize("prefix", ["/", "/small"])
async def test_both_ways_answer_and_count_alike(monkeypatch, prefix):
    path = PATH if prefix == "/" else prefix + PATH
    servers = [Server(monkeypatch, is_short, prefix) for is_short in (False, True)]
    found = []
    for server in servers:
        open_short_way(server.way)
        assert server.way.take(Exchange(b"", [], path).scope) == (server is servers[1])
        assert prefix == "/" or not server.way.take(Exchange(b"", [], PATH).scope), "of another application"
        exchanges = [
            await server.ask(body, headers, path, leaves=body == b"leaves")
            for body, headers in [(b"x", NAMED), (b"refused", NAMED), (b"raises", NAMED), (b"leaves", NAMED)]
        ]
        unnamed = (await server.ask(b"x", path=path)).sent[0]["headers"]
        found.append((
            [exchange.sent for exchange in exchanges[:3]], server.counts, server.app.seen[:4],
            [name for name, _ in unnamed], server.app.seen[4][2] == dict(unnamed)[b"x-request-id"].decode(),
        ))  # fmt: skip
    assert found[0] == found[1]
    sent, counts, seen, _, is_told = found[1]
    assert is_told and (b"x-request-id", b"mine") in sent[0][0]["headers"]
    assert seen == [(path, "" if prefix == "/" else prefix, "mine")] * 4
    assert counts["_cached_error_counter"] == {(prefix, "LookupError"): 1, (prefix, "CancelledError"): 1}
    assert counts["_cached_request_counter"] == {prefix: 3} and counts["places"] == 0


async def test_they_are_counted_while_they_run_and_who_finds_no_place_waits_for_one_as_serve_has_it(monkeypatch):
    server = Server(monkeypatch, is_short=True)
    assert server.way.take(Exchange(b"x", [], PATH).scope)
    asked = [asyncio.create_task(server.ask(b"waits")) for _ in range(LIMIT + 1)]
    await asyncio.sleep(0.02)
    metrics = server.replica._metrics_manager
    assert len(server.app.seen) == metrics._num_ongoing_requests == metrics._ingress_ongoing_requests["HTTP"] == LIMIT
    assert server.replica._num_queued_requests == 1 and not server.way.take(Exchange(b"x", [], PATH).scope)
    server.app.go_on.set()
    exchanges = await asyncio.gather(*asked)
    assert [len(exchange.sent) for exchange in exchanges] == [3] * (LIMIT + 1)
    assert metrics._num_ongoing_requests == server.replica._semaphore._value == 0


async def test_what_serve_has_to_look_at_is_left_to_it(monkeypatch):
    server = Server(monkeypatch, is_short=True)
    take = server.way.take
    scope = Exchange(b"x", [], PATH).scope
    assert take(scope)
    assert not any(take({**scope, **other}) for other in ({"method": "GET"}, {"path": "/"}, {"root_path": "/x"}))
    for name in (b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve_multiplexed_model_id"):
        assert not take({**scope, "headers": [(name, b"1")]})
    with monkeypatch.context() as patch:
        patch.setattr(server.replica._http_options, "request_timeout_s", 5.0)
        assert not take(scope)
    with monkeypatch.context() as patch:
        patch.setattr(direct_requests.logger, "handlers", [logging.NullHandler()])
        assert not take(scope), "a log of accesses"
    assert take(scope)
    monkeypatch.setattr(direct_requests, "replica_here", lambda: None)
    assert not DirectRequests(server.app, [PATH]).take(scope), "no replica, or Serve's proxy"
