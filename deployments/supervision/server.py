"""The server below the supervisor: starts or joins Ray, deploys, waits until the model is ready, and ends in an orderly way."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Container, Iterable, Mapping
from typing import Any, NoReturn, Protocol

from cluster.errors import BiremeError
from deployments.supervision.readiness import last_error, not_ready, out_of_time, what_failed
from deployments.supervision.stages import RUNNING, STARTING, Supervised

_POLL_S = 0.25
_STATUS_POLLS = 2
_END_POLL_S = 0.1


class Watcher(Protocol):
    """Shows a person how the start goes."""

    def begin(self, stage: str) -> None:
        """Of the start, from now on."""

    def look(self) -> None:
        """Called several times a second while applications start; returns at once."""

    def ready(self) -> None:
        """Requests are answered from now on."""

    def known_cause(self, error: Exception) -> str | None:
        """A sentence for a person that says all of ``error``; None if there is more to it."""

    def failed(self, reason: str) -> list[str]:
        """Nothing follows but these last words."""


def run_server(
    config: dict[str, Any], address: str, patience_s: Mapping[str, float], supervised: Supervised, watcher: Watcher
) -> NoReturn:
    """Serve ``config`` (as Ray Serve reads it) on the Ray at ``address`` until told to stop, and leave with status 0.

    Args:
        patience_s: until an application must be ready, from now on, by the name that Serve has for it.

    Where one is not, it leaves with status 1, after the reason in one line.
    """
    began = time.monotonic()
    supervised.enter(STARTING)
    # Ray Serve reads its environment when it is imported.
    import ray

    from deployments.ray_private.serve import deploy
    from deployments.ray_private.worker_pool import start_engine_processes_at_once

    is_local = address == "local"
    names: list[str] = []
    try:
        watcher.begin("Ray")
        start_engine_processes_at_once()
        ray.init(address=address, namespace="serve")
        try:
            watcher.begin("Ray Serve")
            names = deploy(config)
            watcher.begin("application")
            _wait_until_ready(names, began, patience_s, supervised, watcher)
            if not supervised.stop.is_set():
                supervised.enter(RUNNING)
                watcher.ready()
            supervised.stop.wait()
        except BaseException:
            if not is_local:
                take_down(names)
            raise  # of a start on this machine that fails the supervisor ends all
        if is_local:
            _end()
        else:
            take_down(names)
            ray.shutdown()
    except BiremeError as error:
        _leave(watcher.failed(str(error)))
    except Exception as error:
        traceback.print_exc()
        if (cause := watcher.known_cause(error)) is not None:
            _leave(watcher.failed(cause)[:1])  # what the log tells of it is no more
        _leave(watcher.failed(f"the server failed: {type(error).__name__}: {last_error(str(error))}"))
    _leave([], 0)


def _leave(last_words: list[str], status: int = 1) -> NoReturn:
    """At once: Ray's own end at the end of a process prints, and takes seconds."""
    with contextlib.suppress(OSError):
        print("".join(f"{line}\n" for line in last_words), end="", file=sys.stderr, flush=True)
    os._exit(status)


def _wait_until_ready(
    names: list[str], began: float, patience_s: Mapping[str, float], supervised: Supervised, watcher: Watcher
) -> None:
    from ray import serve

    num_polls = 0
    while not supervised.stop.wait(_POLL_S):
        watcher.look()
        num_polls += 1
        if num_polls % _STATUS_POLLS:
            continue
        # Others of a cluster may be as they like.
        applications = {name: found for name, found in serve.status().applications.items() if name in names}
        if (reason := what_failed(applications)) is not None:
            raise BiremeError(reason)
        if not_ready(applications) is None:
            return
        if (late := out_of_time(applications, patience_s, time.monotonic() - began)) is not None:
            raise BiremeError(late)


def take_down(names: list[str]) -> None:
    """End these applications on a Ray that others may use, whose applications stay. Without any Serve ends, too."""
    from ray import serve

    # A start that fails early has none, and no Serve either.
    for name in serve.status().applications.keys() & set(names):
        serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()


def _end() -> None:
    """Let requests under way end. The rest of a Ray of this machine's own is left to the supervisor: Serve's own end is slower,
    and cuts them off."""
    from deployments.ray_private.serve import begin_to_delete, replicas_by_deployment

    # Of an application's deployments Serve ends the one that has the clients first.
    before = replicas_by_deployment()
    begin_to_delete({application for application, _ in before})
    while not _one_of_each_application_is_gone(before, replicas_by_deployment()):
        time.sleep(_END_POLL_S)


def _one_of_each_application_is_gone(before: Iterable[tuple[str, str]], now: Container[tuple[str, str]]) -> bool:
    """Of (application, deployment) pairs."""
    gone = {application for application, deployment in before if (application, deployment) not in now}
    return {application for application, _ in before} <= gone
