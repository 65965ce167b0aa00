"""Planned changes under load: more replicas, fewer, another version. Nobody sees an error, and no answer changes, also where it
takes longer than Serve waits for a replica that leaves, or its request moves before it begins."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter

import pytest
from ray import serve

from cluster.client import Client
from cluster.errors import BiremeError
from deployments.llm import build_openai_app
from tests.chaos.load.clients import Load
from tests.chaos.report import Report
from tests.chaos.scenario import judge, leaks
from tests.chaos.served.application import Setup, application, engine_states, idle_stats

SHUTDOWN_TIMEOUT_S = 1.0
# Fewer slots in one engine than the clients have sequences: some wait when the next engine starts.
SLOTS = 2
EVENTS = {"hand-overs": "bireme_request_handovers", "moves": "bireme_request_moves"}


def events(url: str) -> Counter[str]:
    """Those that the ingress which answers has counted; ingresses are replaced too, and count from 0."""
    with contextlib.suppress(BiremeError, OSError), Client(url, timeout=5) as client:
        found = client.status()["events"]
        return Counter({name: found.get(metric, 0) for name, metric in EVENTS.items()})
    return Counter()


async def settled(url: str, change: asyncio.Task, num_engines: int, timeout_s: float = 120) -> Counter[str]:
    """Wait until the engines are as many as there should be; the most events that an ingress told of meanwhile."""
    deadline, most = time.monotonic() + timeout_s, Counter[str]()
    while not change.done() or engine_states() != {"RUNNING": num_engines}:
        assert time.monotonic() < deadline, engine_states()
        most |= await asyncio.to_thread(events, url)
        await asyncio.sleep(0.3)
    await change
    return most | await asyncio.to_thread(events, url)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_rolling_update_with_one_more_engine_and_one_less_cost_nobody_anything(tmp_path, capsys):
    setup = Setup(num_engines=1, num_ingresses=2, num_clients=5)
    folder = tmp_path / "tiny"

    def deploy(num_engines: int, **changes) -> None:
        options = {"num_replicas": num_engines, "graceful_shutdown_timeout_s": SHUTDOWN_TIMEOUT_S}
        settings = {"max_num_seqs": SLOTS, "deployment_config": options, **changes}
        serve.run(build_openai_app(setup.config(folder, **settings)))

    async def scenario(url: str) -> Report:
        report = Report([1])
        load = Load(url, setup.num_clients, setup.max_tokens, seed=1)
        twins = await load.twins()
        running = asyncio.create_task(load.run())
        for num_engines, changes in ((2, {"max_num_seqs": 3}), (1, {"max_num_seqs": 3})):
            change = asyncio.create_task(asyncio.to_thread(deploy, num_engines, **changes))
            seen = await settled(url, change, num_engines)
            report.faults["hand-overs"] += seen["hand-overs"]
            report.moves += seen["moves"]
            report.faults[f"change to {num_engines} engines {changes or ''}"] += 1
        with Client(url) as client:
            found = client.status()
            assert len([engine for engine in found["engines"] if engine["state"] == "running"]) == 1
        load.stopping = True
        await asyncio.wait_for(running, 120)
        assert max(seen.times[-1] - seen.times[0] for seen in load.seen) > 2 * SHUTDOWN_TIMEOUT_S
        judge(report, load, twins)
        leaks(report, await asyncio.to_thread(idle_stats, 1, 60), setup)
        return report

    with application(setup, folder, max_num_seqs=SLOTS) as running:
        report = asyncio.run(scenario(running.url))
    with capsys.disabled():
        print(f"\n{report}")
    # Requests that wait move to the new engine, or are handed over when theirs leaves: which of them depends on how long the two
    # are there together. ``test_chaos`` has moves.
    assert report.faults["hand-overs"] > 0
    assert (report.lost, report.changed, report.leaks, report.honest) == ([], [], [], 0)
