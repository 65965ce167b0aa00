"""The server below the supervisor: starts or joins Ray, deploys, waits until the model is ready, and ends in an orderly way."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Container, Iterable
from typing import Any, NoReturn

from cluster.errors import BiremeError
from deployments.supervision.readiness import not_ready, what_failed
from deployments.supervision.stages import RUNNING, STARTING, Supervised

_POLL_S = 0.5
_END_POLL_S = 0.1


def run_server(config: dict[str, Any], address: str, patience_s: float, supervised: Supervised) -> NoReturn:
    """Serve ``config`` (as Ray Serve reads it) on the Ray at ``address`` until told to stop, and leave with status 0.

    Args:
        patience_s: until all applications must be ready, from now on.

    Where they are not, it leaves with status 1 after one line that has the reason.
    """
    deadline = time.monotonic() + patience_s
    supervised.enter(STARTING)
    # Ray Serve reads its environment when it is imported.
    import ray

    from deployments.ray_private.serve import deploy

    is_local = address == "local"
    try:
        ray.init(address=address, namespace="serve")
        try:
            deploy(config)
            _wait_until_ready(deadline, patience_s, supervised)
            if not supervised.stop.is_set():
                supervised.enter(RUNNING)
            supervised.stop.wait()
        except BaseException:
            if not is_local:
                _end(is_local)
            raise  # of a start on this machine that fails the supervisor ends all
        _end(is_local)
    except BiremeError as error:
        _leave(f"Error: {error}")
    except Exception:
        _leave(traceback.format_exc())
    _leave("", 0)


def _leave(last_words: str, status: int = 1) -> NoReturn:
    """At once: Ray's own end at the end of a process prints, and takes seconds."""
    with contextlib.suppress(OSError):
        print(last_words, end="\n" if last_words else "", file=sys.stderr, flush=True)
    os._exit(status)


def _wait_until_ready(deadline: float, patience_s: float, supervised: Supervised) -> None:
    from ray import serve

    while not supervised.stop.wait(_POLL_S):
        applications = serve.status().applications
        if (reason := what_failed(applications)) is not None:
            raise BiremeError(reason)
        if (waiting := not_ready(applications)) is None:
            return
        if time.monotonic() > deadline:
            raise BiremeError(f"not ready after start_timeout_s={patience_s:g}: {waiting}")


def _end(is_local: bool) -> None:
    """Let requests under way end. Of a Ray of this machine's own the rest is left to the supervisor: Serve's own end is slower,
    and cuts them off."""
    import ray
    from ray import serve

    from deployments.ray_private.serve import begin_to_delete, replicas_by_deployment

    if not is_local:
        serve.shutdown()
        ray.shutdown()
        return
    # Of an application's deployments Serve ends the one that has the clients first.
    before = replicas_by_deployment()
    begin_to_delete({application for application, _ in before})
    while not _one_of_each_application_is_gone(before, replicas_by_deployment()):
        time.sleep(_END_POLL_S)


def _one_of_each_application_is_gone(before: Iterable[tuple[str, str]], now: Container[tuple[str, str]]) -> bool:
    """Of (application, deployment) pairs."""
    gone = {application for application, deployment in before if (application, deployment) not in now}
    return {application for application, _ in before} <= gone
