"""Which engines a router passes over, and for how long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.request_router.common import PendingRequest

from deployments.routing import engine_choices as shared
from deployments.routing.engine_choices import EngineChoices
from deployments.routing.engine_router import EngineRouter


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_an_engine_is_avoided_for_a_time_and_the_longer_time_wins():
    clock = Clock()
    choices = EngineChoices(clock)
    choices.avoid("a", 5.0)
    choices.avoid("a", 1.0)
    clock.time += 4.9
    assert choices.is_avoided("a")
    clock.time += 0.2
    assert not choices.is_avoided("a")


def test_an_engine_that_takes_a_request_is_trusted_again():
    choices = EngineChoices()
    choices.avoid("a", 5.0)
    choices.trust("a")
    assert not choices.is_avoided("a")


def test_another_engine_is_one_that_the_router_knows_and_that_is_not_avoided():
    choices = EngineChoices()
    choices.set_engines({"a": "f", "b": "f"})
    assert choices.has_other("a")
    choices.avoid("b", 5.0)
    assert not choices.has_other("a")
    choices.set_engines({"a": "f", "c": "f"})
    assert choices.has_other("a")
    assert choices.has_other("a", "f")
    assert not choices.has_other("a", "another fingerprint")


def test_the_time_without_any_engine_is_known():
    clock = Clock()
    choices = EngineChoices(clock)
    clock.time += 2.0
    assert choices.seconds_without() == 2.0
    choices.set_engines({"a": "f"})
    assert choices.seconds_without() == 0.0
    for _ in range(2):
        choices.set_engines({})
        clock.time += 3.0
    assert choices.seconds_without() == 6.0


def test_a_choice_is_noted_for_open_requests_only_and_forgotten_with_them():
    choices = EngineChoices()
    choices.chose("late", "a")
    assert choices.chosen("late") == ""
    choices.open("r")
    choices.chose("r", "a")
    assert choices.chosen("r") == "a"
    choices.close("r")
    assert choices.chosen("r") == ""


class Router(EngineRouter):
    """The router's own rule over replicas of this test; locality and the rest of Serve's router need a cluster."""

    def __init__(self, engine_ids: list[str]) -> None:
        self._replicas = {name: SimpleNamespace(replica_metadata={"engine_id": name}) for name in engine_ids}
        self._routed_by = {}

    def apply_locality_routing(self, pending_request=None):
        return set(self._replicas)


class Replica:
    """What Serve's router sees of a replica. Its first answer takes ``delay_s``."""

    max_ongoing_requests = 10
    node_id = availability_zone = None
    multiplexed_model_ids = frozenset()

    def __init__(self, engine_id: str, delay_s: float = 0.0) -> None:
        self.replica_id = ReplicaID(engine_id, DeploymentID("engines", "app"))
        self.replica_metadata = {"engine_id": engine_id, "fingerprint": f"of {engine_id}"}
        self._delay_s = delay_s

    async def get_queue_len(self, *, deadline_s: float) -> int:
        await asyncio.sleep(self._delay_s)
        return 0


def pending_request(request_id: str, fingerprint: str) -> PendingRequest:
    metadata = RequestMetadata(request_id=request_id, internal_request_id=request_id)
    return PendingRequest([SimpleNamespace(request_id=request_id), fingerprint, False], {}, metadata)


async def picked(router: Router) -> set[str]:
    (rank,) = await router.choose_replicas([])
    return {replica.replica_metadata["engine_id"] for replica in rank}


async def test_the_router_passes_over_avoided_engines_as_long_as_there_are_others(monkeypatch):
    monkeypatch.setattr(shared, "engine_choices", choices := EngineChoices())
    router = Router(["a", "b", "c"])
    choices.avoid("a", 60.0)
    choices.avoid("b", 60.0)
    assert [await picked(router) for _ in range(20)] == [{"c"}] * 20
    choices.avoid("c", 60.0)
    seen = set().union(*[await picked(router) for _ in range(50)])
    assert seen == {"a", "b", "c"}


async def test_an_answer_that_has_begun_is_sent_to_engines_with_its_fingerprint(monkeypatch):
    monkeypatch.setattr(shared, "engine_choices", choices := EngineChoices())
    router = Router(["a", "b", "c"])
    for name, replica in router._replicas.items():
        replica.replica_metadata["fingerprint"] = "old" if name == "a" else "new"

    async def sent_to(fingerprint: str) -> set[str]:
        seen = set()
        for _ in range(40):
            pending = pending_request("r", fingerprint)
            (rank,) = await router.choose_replicas([], pending)
            seen |= {replica.replica_metadata["engine_id"] for replica in rank}
        return seen

    assert await sent_to("old") == {"a"}
    assert await sent_to("new") == {"b", "c"}
    assert await sent_to("") == await sent_to("nobody's") == {"a", "b", "c"}
    # An engine that is to be avoided is still better than one that cannot continue the answer.
    choices.avoid("a", 60.0)
    assert await sent_to("old") == {"a"}


async def test_of_two_requests_at_once_each_gets_the_engine_that_was_chosen_for_it(monkeypatch):
    monkeypatch.setattr(shared, "engine_choices", EngineChoices())
    router = EngineRouter(
        deployment_id=DeploymentID("engines", "app"),
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    router.initialize_state()
    # The engine of the request that came first answers last.
    router.update_replicas([Replica("a", delay_s=0.05), Replica("b")])
    chosen = await asyncio.wait_for(
        asyncio.gather(
            router._choose_replica_for_request(pending_request("first", "of a")),
            router._choose_replica_for_request(pending_request("second", "of b")),
        ),
        10,
    )
    assert [replica.replica_metadata["engine_id"] for replica in chosen] == ["a", "b"]
    assert router.num_pending_requests == 0
