"""A request that takes its engine down wherever it runs is refused in the end, and the fleet lives on."""

from __future__ import annotations

import contextlib
import json
import signal
import threading

import pytest
import ray

from cluster.client import Client
from cluster.client.errors import ServerError
from tests.chaos.served.application import Setup, application, runners
from tests.chaos.served.processes import send
from tests.engines import TINY_CONFIG


def kill_whoever_runs_it(ended: threading.Event, victims: list[int]) -> None:
    """Stands in for a fault in the kernels: the engine that computes the request dies of it."""
    while not ended.wait(0.02):
        for runner in runners():
            with contextlib.suppress(ray.exceptions.RayError):
                stats = ray.get(runner.stats.remote(), timeout=1)
                if stats.get("num_requests_running") and stats["pid"] not in victims:
                    victims.append(stats["pid"])
                    send(stats["pid"], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_request_under_which_two_engines_died_is_refused_and_others_are_served(tmp_path):
    setup = Setup(num_engines=3, num_ingresses=1)
    folder = tmp_path / "tiny"
    # Deep enough that a long prompt takes seconds: the engines die before the first token.
    deep = {**TINY_CONFIG, "vocab_size": 49152, "max_position_embeddings": 2048, "num_hidden_layers": 40}
    with (
        application(setup, folder, deep, max_num_batched_tokens=16) as running,
        Client(running.url, timeout=120) as client,
    ):
        ended, victims = threading.Event(), []
        killer = threading.Thread(target=kill_whoever_runs_it, args=(ended, victims))
        killer.start()
        try:
            with pytest.raises(ServerError) as refusal:
                client.complete(json.dumps(list(range(400))), max_tokens=4)
        finally:
            ended.set()
            killer.join()
        assert (refusal.value.status, refusal.value.code) == (500, "request_quarantined")
        assert len(victims) == 2
        assert client.complete("Go on", max_tokens=4, ignore_eos=True).usage.completion_tokens == 4
        assert client.status()["events"]["bireme_quarantined_requests"] == 1
