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


def known_engines() -> list[set[str]]:
    """Ids of the engines that each ingress may choose from; of ingresses that answer at once and are ready for requests."""
    return [engines for engines in _ask(_known_engines) if engines is not None]


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


def _known_engines(replica: Any) -> set[str] | None:
    # The copy of this module that Ray makes there has no imports of that process.
    from deployments.engine_choices import engine_choices

    ingress = replica._replica_impl._user_callable_wrapper._callable
    return None if ingress is None or ingress._service is None else set(engine_choices.engines)


def _pid_and_seeds(replica: Any) -> tuple[int, list[int]]:
    ingress = replica._replica_impl._user_callable_wrapper._callable
    journal = ingress._client._journal if ingress is not None and ingress._client is not None else ()
    return os.getpid(), [entry.params.seed for entry in journal]
