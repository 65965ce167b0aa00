"""The ingress replicas of the application under test, and what each of them is doing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import ray

from deployments.metrics.request_events import MOVES

_NAME = "SERVE_REPLICA::default#OpenAiIngress"
_PATIENCE_S = 0.5
_Found = TypeVar("_Found")


def known_engines() -> dict[int, set[str]]:
    """Ids of the engines that each ingress may choose from, by its process id; of ingresses that answer at once and are ready for
    requests."""
    return {pid: engines for pid, engines in ask_ingresses(_known_engines) if engines is not None}


class Open(NamedTuple):
    """What one ingress has open.

    Attributes:
        seeds: of the requests in its journal.
        num_tasks: sequences that it follows, and requests for which it knows an engine.
        streams: ids of the engines that it is attached to.
    """

    seeds: list[int]
    num_tasks: int
    streams: set[str]


def open_now() -> dict[int, Open]:
    """What each ingress has open, by its process id; of those that answer at once."""
    return {pid: Open(*found) for pid, found in ask_ingresses(_pid_and_open)}


def num_moves() -> dict[int, int]:
    """Requests that each ingress has moved, by its process id; of those that answer at once."""
    return dict(ask_ingresses(_pid_and_moves))


def ask_ingresses(question: Callable[[Any], _Found]) -> list[_Found]:
    """What each replica answers; those that are gone, start or hang are left out."""
    asked = []
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(_NAME):
            with contextlib.suppress(ValueError):
                handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
                asked.append(handle.__ray_call__.remote(question))
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=_PATIENCE_S) if asked else ([], [])
    found = []
    for ref in ready:
        with contextlib.suppress(ray.exceptions.RayError):
            found.append(ray.get(ref))
    return found


def _known_engines(replica: Any) -> tuple[int, set[str] | None]:
    ingress = replica._replica_impl._user_callable_wrapper._callable
    is_ready = ingress is not None and ingress._model.now is not None
    return os.getpid(), set(ingress._client.choices.engines) if is_ready else None


def _pid_and_moves(replica: Any) -> tuple[int, int]:
    ingress = replica._replica_impl._user_callable_wrapper._callable
    client = None if ingress is None else ingress._client
    return os.getpid(), 0 if client is None else client.events.counts[MOVES]


def _pid_and_open(replica: Any) -> tuple[int, tuple[list[int], int, set[str]]]:
    ingress = replica._replica_impl._user_callable_wrapper._callable
    client = None if ingress is None else ingress._client
    if client is None:
        return os.getpid(), ([], 0, set())
    seeds = [entry.params.seed for entry in client._submissions.journal]
    num_tasks = max(client.num_running, len(client.choices._chosen))
    return os.getpid(), (seeds, num_tasks, {stream.engine_id for stream in client.streams})
