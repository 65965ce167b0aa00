"""What a request waits for its turn at the ingress is time of its answer, and a hop of its way."""

from __future__ import annotations

import asyncio
import json

from deployments.routing.waiting.turns import Turns
from tests.deployments.ingress_without_ray import Connection, application_of, service_of
from tests.deployments.played_engines import Engines
from tests.waiting import until

WAITED_S = 0.3


async def test_the_wait_for_a_turn_counts(monkeypatch):
    begin = Turns.begin

    async def later(self: Turns) -> None:
        await asyncio.sleep(WAITED_S)
        await begin(self)

    engines = Engines([65])
    service = service_of(engines)
    app, connection = application_of(service), Connection("/v1/completions", {"prompt": "x", "max_tokens": 1})
    monkeypatch.setattr(Turns, "begin", later)
    await app(connection.scope, connection.receive, connection.send)
    assert connection.events[0]["status"] == 200
    await until(lambda: sum(engines.metrics.totals.whole.counts) == 1, 20)
    (sequence,) = service.traces.of(json.loads(connection.body)["id"], "")["sequences"]
    hops = {hop["name"]: hop["took_ms"] for hop in sequence["hops"]}
    assert list(hops)[:3] == ["received", "begun", "prepared"]
    assert 900 * WAITED_S <= hops["begun"] < 900 * WAITED_S * 20
    assert hops["prepared"] < hops["begun"]
    assert engines.metrics.totals.first_token.total >= 0.9 * WAITED_S
