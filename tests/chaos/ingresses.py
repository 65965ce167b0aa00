"""The ingress replicas of the application under test, and what each of them is doing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import ray

_NAME = "SERVE_REPLICA::default#OpenAiIngress"
_PATIENCE_S = 0.5
_Found = TypeVar("_Found")


def num_ready_ingresses() -> int:
    """Ingress replicas that answer at once and know an engine."""
    return sum(_ask(_knows_an_engine))


def open_requests() -> dict[int, list[int]]:
    """Seeds of the requests that each ingress has open, by its process id; of those that answer at once."""
    return dict(_ask(_pid_and_seeds))


def _ask(question: Callable[[Any], _Found]) -> list[_Found]:
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


def _knows_an_engine(replica: Any) -> bool:
    ingress = replica._replica_impl._user_callable_wrapper._callable
    return ingress is not None and ingress._service is not None


def _pid_and_seeds(replica: Any) -> tuple[int, list[int]]:
    ingress = replica._replica_impl._user_callable_wrapper._callable
    journal = ingress._client._journal if ingress is not None and ingress._client is not None else ()
    return os.getpid(), [entry.params.seed for entry in journal]
