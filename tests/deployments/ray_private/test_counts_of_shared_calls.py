"""A call that stands for several requests counts for as many in Ray Serve, at its handle and at its replica."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.utils import Semaphore

from deployments.ray_private import serve
from deployments.ray_private.serve import CallOfRequests, RequestsOfACall

REPLICA = ReplicaID("abc", DeploymentID("engines", "app"))


def handle_of_one_replica() -> Any:
    totals: Counter[str] = Counter()
    metrics = SimpleNamespace(
        _queries_lock=threading.Lock(),
        num_requests_sent_to_replicas=Counter(),
        inc_num_total_requests=lambda route: totals.update(["router"]),
    )
    router = SimpleNamespace(_replicas={REPLICA: None})
    counter = SimpleNamespace(inc=lambda value, tags: totals.update({"handle": value}))
    return SimpleNamespace(
        _router=SimpleNamespace(_asyncio_router=SimpleNamespace(_metrics_manager=metrics, request_router=router)),
        request_counter=counter, metrics=metrics, totals=totals,
    )  # fmt: skip


def test_at_the_handle_the_others_of_a_call_count_until_they_are_answered():
    handle = handle_of_one_replica()
    call = CallOfRequests(handle, "abc", 4)  # of which Serve counts one itself
    assert handle.metrics.num_requests_sent_to_replicas[REPLICA] == 3
    assert handle.totals == {"handle": 3, "router": 3}
    call.end(2)
    assert handle.metrics.num_requests_sent_to_replicas[REPLICA] == 1
    call.end(2)
    call.close()
    assert handle.metrics.num_requests_sent_to_replicas[REPLICA] == 0
    CallOfRequests(handle, "unknown", 4).close()
    CallOfRequests(SimpleNamespace(), "abc", 4).close()  # type: ignore[arg-type]
    assert handle.metrics.num_requests_sent_to_replicas == {REPLICA: 0}


async def test_at_the_replica_they_count_within_its_limit(monkeypatch):
    ended: list[float] = []
    metrics = SimpleNamespace(
        _num_ongoing_requests=1, record_request_metrics=lambda route, latency_ms, is_error: ended.append(latency_ms)
    )
    replica = SimpleNamespace(_semaphore=Semaphore(lambda: 3), _metrics_manager=metrics)
    await replica._semaphore.acquire()  # the call itself
    monkeypatch.setattr(serve, "replica_here", lambda: cast(Any, replica))
    requests = RequestsOfACall()
    assert await requests.take(5) == 3 and metrics._num_ongoing_requests == 3 and replica._semaphore.locked()
    beside = RequestsOfACall()
    assert await beside.take(2) == 1, "its own call's"
    beside.close()
    requests.end(1)
    assert metrics._num_ongoing_requests == 2 and len(ended) == 1 and not replica._semaphore.locked()
    requests.end(2)
    requests.close()
    assert metrics._num_ongoing_requests == 1 and len(ended) == 2
    replica._semaphore.release()
    assert replica._semaphore._value == 0
