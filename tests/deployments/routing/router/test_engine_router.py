"""To which engine Serve's router sends a request, as the policy says."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.request_router import LocalityScope

from cluster.outputs import EngineLoad
from cluster.request import EngineRequest
from cluster.routing.policies import POLICIES
from cluster.sampling_params import SamplingParams
from deployments.metrics import routing_errors
from deployments.routing.router import engine_router
from deployments.routing.router.engine_choices import EngineChoices, choices_of
from deployments.routing.router.engine_router import EngineRouter

_apps = itertools.count()


class Replica:
    """What Serve's router sees of a replica. Its first answer takes ``delay_s``."""

    max_ongoing_requests = 100
    node_id = availability_zone = None
    multiplexed_model_ids = frozenset()

    def __init__(self, engine_id: str, fingerprint: str = "f", delay_s: float = 0.0) -> None:
        self.replica_id = ReplicaID(engine_id, DeploymentID("engines", "app"))
        self.replica_metadata = {"engine_id": engine_id, "fingerprint": fingerprint}
        self._delay_s = delay_s

    async def get_queue_len(self, *, deadline_s: float) -> int:
        await asyncio.sleep(self._delay_s)
        return 0


def router_to(*replicas: Replica, policy: str = "power_of_two") -> tuple[EngineRouter, EngineChoices]:
    """As Serve makes one, of a deployment of its own; and what it shares with the ingress of that."""
    app = f"app {next(_apps)}"
    router = EngineRouter(
        deployment_id=DeploymentID("engines", app),
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    router.initialize_state(policy=policy)
    router.update_replicas(list(replicas))
    return router, choices_of(app, "engines")


def engine_request(request_id: str, num_tokens: int = 1) -> EngineRequest:
    return EngineRequest(request_id, [1] * num_tokens, SamplingParams())


def pending_request(request_id: str, fingerprint: str = "", num_tokens: int = 1) -> PendingRequest:
    metadata = RequestMetadata(request_id=request_id, internal_request_id=request_id)
    return PendingRequest([engine_request(request_id, num_tokens), fingerprint, False], {}, metadata)


async def routed(router: EngineRouter, pending: PendingRequest) -> str:
    replica = await asyncio.wait_for(router._choose_replica_for_request(pending), 10)
    return replica.replica_metadata["engine_id"]


async def named(router: EngineRouter, fingerprint: str = "") -> set[str]:
    """Engines that Serve may take, over many requests."""
    seen = set()
    for _ in range(40):
        first_rank = (await router.choose_replicas([], pending_request("r", fingerprint)))[0]
        seen |= {replica.replica_metadata["engine_id"] for replica in first_rank}
    return seen


every_policy = pytest.mark.parametrize("policy", POLICIES)


@every_policy
async def test_the_router_passes_over_avoided_engines_as_long_as_there_are_others(policy):
    router, choices = router_to(*map(Replica, "abc"), policy=policy)
    choices.avoid("a", 60.0)
    choices.avoid("b", 60.0)
    assert await named(router) == {"c"}
    choices.avoid("c", 60.0)
    assert await named(router) == set("abc")


@every_policy
async def test_an_answer_that_has_begun_is_sent_to_engines_with_its_fingerprint(policy):
    router, choices = router_to(Replica("a", "old"), Replica("b", "new"), Replica("c", "new"), policy=policy)
    assert await named(router, "old") == {"a"}
    assert await named(router, "new") == {"b", "c"}
    assert await named(router, "") == await named(router, "nobody's") == {"a", "b", "c"}
    # An engine that is to be avoided is still better than one that cannot continue the answer.
    choices.avoid("a", 60.0)
    assert await named(router, "old") == {"a"}


@every_policy
async def test_a_request_goes_to_the_engine_that_keeps_a_place_for_it(policy):
    router, choices = router_to(*map(Replica, "abc"), policy=policy)
    for engine_id in "abc":
        choices.open("r", place=engine_id)
        assert await named(router) == {engine_id}
    choices.avoid("c", 60.0)
    assert await named(router) <= set("ab")
    choices.open("r")
    assert await named(router) == set("ab")


@every_policy
async def test_the_first_choice_is_the_policys_and_spreads_a_burst_before_any_call(policy):
    router, choices = router_to(*map(Replica, "abc"), policy=policy)
    choices.avoid("c", 60.0)
    chosen: Counter[str] = Counter()
    for number in range(20):
        choices.open(str(number))
        chosen[choices.first_choice(engine_request(str(number), 5))] += 1
    assert chosen == {"a": 10, "b": 10}
    assert choices.token_weight("a") == choices.token_weight("b") == 500
    router.update_replicas([])
    assert choices.first_choice(engine_request("r")) == ""


@every_policy
async def test_the_call_of_what_an_engine_has_goes_there_though_that_is_avoided_by_now(policy):
    router, choices = router_to(*map(Replica, "abc"), policy=policy)
    choices.open("r")
    choices.pin("r", "b")
    choices.avoid("b", 60.0)
    assert await named(router) == {"b"}
    choices.open("r")
    assert "b" not in await named(router)


@every_policy
async def test_who_was_refused_stands_in_line_and_who_was_at_an_engine_goes_where_there_is_room(policy):
    router, choices = router_to(*map(Replica, "ab"), policy=policy)
    choices.announced("a", EngineLoad(9, 9, line_length=2))
    choices.announced("b", EngineLoad(9, 9, open_places=1))
    refused = pending_request("r")
    refused.args[0].attempt = 1
    assert {(await router.choose_replicas([], refused))[0][0].replica_metadata["engine_id"] for _ in range(20)} == {"a"}
    choices.left_engine("r")
    ranks = [await router.choose_replicas([], refused) for _ in range(20)]
    assert "b" in {replica.replica_metadata["engine_id"] for rank in ranks for replica in rank[0]}


async def test_the_first_choice_prefers_what_serve_prefers(monkeypatch):
    router, choices = router_to(*map(Replica, "abc"))
    near = [replica.replica_id for replica in router.known_replicas if replica.replica_metadata["engine_id"] == "b"]
    monkeypatch.setattr(router, "_prefer_local_node_routing", True)
    monkeypatch.setattr(router, "_colocated_replica_ids", {LocalityScope.NODE: set(near)})
    assert {choices.first_choice(engine_request("r")) for _ in range(20)} == {"b"}


async def test_of_two_requests_at_once_each_gets_the_engine_that_was_chosen_for_it():
    # The engine of the request that came first answers last.
    router, _ = router_to(Replica("a", "of a", delay_s=0.05), Replica("b", "of b"))
    chosen = await asyncio.gather(
        routed(router, pending_request("first", "of a")), routed(router, pending_request("second", "of b"))
    )
    assert chosen == ["a", "b"]
    assert router.num_pending_requests == 0


async def test_a_call_without_a_request_finds_an_engine_too():
    router, _ = router_to(Replica("a"), policy="least_tokens")
    metadata = RequestMetadata(request_id="info", internal_request_id="info")
    assert await routed(router, PendingRequest([], {}, metadata)) == "a"


async def test_a_policy_that_is_not_there_is_no_router():
    with pytest.raises(KeyError):
        router_to(policy="round_robin")


async def test_the_ingress_hears_of_the_engines_and_of_the_choice_of_its_requests_only():
    router, choices = router_to(Replica("a", "f"), Replica("b", "g"))
    _, other = router_to(Replica("a", "h"))
    assert (choices.engines, other.engines) == ({"a": "f", "b": "g"}, {"a": "h"})
    choices.open("r")
    other.open("r")
    assert await routed(router, pending_request("r", "g")) == "b"
    assert (choices.chosen("r"), other.chosen("r")) == ("b", "")
    router.on_replica_actor_died(Replica("a").replica_id)
    assert (choices.engines, other.engines) == ({"b": "g"}, {"a": "h"})


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
async def test_least_tokens_spreads_a_burst_that_comes_between_two_announcements(delay_s):
    router, choices = router_to(*(Replica(name, delay_s=delay_s) for name in "abc"), policy="least_tokens")
    for name, num_tokens in (("a", 100), ("b", 0), ("c", 1000)):
        choices.announced(name, EngineLoad(9, 9, num_tokens=num_tokens))
    requests = [pending_request(str(number), num_tokens=10) for number in range(13)]
    for number in range(13):
        choices.open(str(number))
    sent_to = Counter(await asyncio.gather(*(routed(router, request) for request in requests)))
    # 100 + 60 * 10 and 0 + 70 * 10, as prompts to compute count tenfold: even the last request finds an engine with fewer than
    # the third one has.
    assert sent_to == {"a": 6, "b": 7}
    assert [choices.token_weight(name) for name in "abc"] == [700, 700, 1000]


def broken(request, engines, rng: random.Random):
    raise ZeroDivisionError("no tokens")


@pytest.fixture
def errors(monkeypatch, caplog) -> list[tuple[str, str]]:
    """What is counted: policy and error."""
    counted: list[tuple[str, str]] = []
    metric = SimpleNamespace(inc=lambda count, tags: counted.append((tags["policy"], tags["error"])))
    monkeypatch.setattr(routing_errors, "_metric", lambda: metric)
    monkeypatch.setattr(routing_errors, "_told", set())
    caplog.set_level(logging.ERROR, "ray.serve")
    return counted


async def test_a_policy_that_raises_loses_no_request_and_is_counted_and_told_of_once(errors, caplog, monkeypatch):
    router, choices = router_to(*map(Replica, "abc"), policy="least_tokens")
    monkeypatch.setattr(router, "_policy", broken)
    choices.avoid("a", 60.0)
    sent_to = Counter([await routed(router, pending_request(str(number))) for number in range(40)])
    assert set(sent_to) == {"b", "c"}  # what the power of two would have done
    assert errors == [("least_tokens", "ZeroDivisionError")] * 40
    (told,) = caplog.records
    assert told.getMessage().startswith("event=routing_error policy=least_tokens")


async def test_what_fails_around_the_policy_loses_no_request_either(errors, caplog, monkeypatch):
    router, choices = router_to(*map(Replica, "ab"), policy="least_tokens")
    monkeypatch.setattr(choices, "is_avoided", lambda engine_id: {}[engine_id])
    assert choices.first_choice(engine_request("r")) == "" and len(errors) == 1
    assert await routed(router, pending_request("r")) in "ab"
    assert errors == [("least_tokens", "KeyError")] * 2
    assert len(caplog.records) == 1


_ROUTES = """
import asyncio, pickle, sys
from deployments.routing.router.engine_choices import choices_of
from deployments.routing.router import engine_router
from tests.deployments.routing.router.test_engine_router import DeploymentHandleSource, DeploymentID, Replica
router_class = pickle.load(sys.stdin.buffer)
assert router_class is not engine_router.EngineRouter
async def main():
    router = router_class(deployment_id=DeploymentID("engines", "copied"), handle_source=DeploymentHandleSource.REPLICA)
    router.initialize_state(policy="least_tokens")
    router.update_replicas([Replica("a", "f")])
    print(choices_of("copied", "engines").engines, (await router.choose_replicas([]))[0][0].replica_metadata["engine_id"])
asyncio.run(main())
"""


def test_the_copy_that_serve_makes_of_the_router_shares_the_choices_of_the_process_that_routes():
    cloudpickle.register_pickle_by_value(engine_router)
    try:
        copy = cloudpickle.dumps(EngineRouter)
    finally:
        cloudpickle.unregister_pickle_by_value(engine_router)
    routes = subprocess.run([sys.executable, "-c", _ROUTES], input=copy, capture_output=True, timeout=120)
    assert routes.returncode == 0, routes.stderr.decode()
    assert routes.stdout.decode() == "{'a': 'f'} a\n"
