"""What the application consists of at this moment, for ``bireme status``."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from cluster.api_errors import unavailable
from deployments.admin.siblings import Happened, Siblings
from deployments.admin.single_flight import SingleFlight
from deployments.replica.engine_replica import application_name, runner_names
from deployments.routing.engine_client import EngineClient
from deployments.spares.keepers import SpareKeepers

_ANSWER_TIMEOUT_S = 1.0
_LOOK_TIMEOUT_S = 5.0


async def cluster_status(
    client: EngineClient, siblings: Siblings, spares: SpareKeepers | None = None
) -> dict[str, Any]:
    """Replicas by deployment and state, every engine's counters, spare processes, the events of all ingresses, and this
    ingress's load.

    An engine that does not answer within a second is listed as silent; ingresses that do not are counted.

    Raises:
        ApiError: 503, Serve's controller or Ray's directory of actors does not answer.
    """
    try:
        replicas, runners = await asyncio.gather(_REPLICAS.result(), RUNNERS.result())
    except (ray.exceptions.RayError, RayServeException) as error:
        raise unavailable(f"Serve's controller does not answer: {type(error).__name__}") from None
    asked = (_engine(engine_id, runner) for engine_id, runner in sorted(runners.items()))
    (happened, num_silent), *engines = await asyncio.gather(siblings.happened(happened_in(client), replicas), *asked)
    return {
        "replicas": replicas,
        "engines": engines,
        "spares": await spares.figures() if spares else [],
        "ingresses": {found.ingress: {"events": found.counts, "recoveries": found.recoveries} for found in happened},
        "silent_ingresses": num_silent,
        "events": dict(sum((Counter(found.counts) for found in happened), Counter[str]())),
        "recoveries": _together([found.recoveries for found in happened]),
        "running": client.num_running,
        "load": _load(client),
    }


def happened_in(client: EngineClient) -> Happened:
    """What the ingress of ``client`` has counted."""
    return Happened(client.subscriber, dict(client.events.counts), dict(client.events.recoveries))


def _together(recoveries: list[dict[str, float]]) -> dict[str, float]:
    return {
        "count": sum(found["count"] for found in recoveries),
        "total_s": sum(found["total_s"] for found in recoveries),
        "longest_s": max(found["longest_s"] for found in recoveries),
    }


def _load(client: EngineClient) -> dict[str, Any]:
    inputs = client.inputs()
    engines = {view.engine_id: {**view.load._asdict(), "age_s": round(view.age_s, 3)} for view in inputs.engines}
    targets = {
        name: found and found._asdict()
        for name, found in (("ttft", inputs.ingress.ttft), ("tpot", inputs.ingress.tpot))
    }
    return {**inputs.ingress._asdict(), **targets, "engines": engines}


def _find_replicas() -> dict[str, dict[str, int]]:
    status = serve.status().applications.get(application_name())
    return {name: dict(found.replica_states) for name, found in status.deployments.items()} if status else {}


def _find_runners() -> dict[str, Any]:
    """Engine id to runner actor, of this application's engines that have not ended."""
    prefix, runners = runner_names(), {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(prefix):
            with contextlib.suppress(ValueError):  # it ended in between
                runners[actor["name"].removeprefix(prefix)] = ray.get_actor(actor["name"], actor["namespace"])
    return runners


# Serve waits for its controller without end, so a few questions would hold all threads that others need for short work.
_REPLICAS = SingleFlight(_find_replicas, _LOOK_TIMEOUT_S, "Serve's controller")
RUNNERS = SingleFlight(_find_runners, _LOOK_TIMEOUT_S, "Ray's directory of actors")


async def _engine(engine_id: str, runner: Any) -> dict[str, Any]:
    try:
        return await asyncio.wait_for(runner.stats.remote(), _ANSWER_TIMEOUT_S)
    except asyncio.TimeoutError:
        return {"engine_id": engine_id, "state": "silent"}
    except ray.exceptions.RayError as error:
        return {"engine_id": engine_id, "state": f"dead ({type(error).__name__})"}
