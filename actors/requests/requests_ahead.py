"""Requests that came before their calls: the ingress sends them straight to the engine's process, Serve brings the call later."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeAlias

from actors.requests.ended_answers import RETENTION_S
from cluster.outputs import AttachRequired, GenerateReply, NotAdmitted
from cluster.request import RequestKey

logger = logging.getLogger("bireme.runner")

# What a call is answered with. Nobody need wait for it or look at it, and to cancel it ends nothing.
Reply: TypeAlias = "asyncio.Future[GenerateReply | AttachRequired | NotAdmitted]"
# A call that has not come by then does not come: Serve lost it, or its ingress is gone.
CALL_PATIENCE_S = 10.0


class RequestsAhead:
    """Those whose calls are yet to come. Belongs to one event loop.

    What is given up is remembered for a while, so that a very late call learns of it instead of running the request again.

    Args:
        abort: ends a request that runs.
    """

    def __init__(self, abort: Callable[[RequestKey], None]) -> None:
        self._abort = abort
        # Each with when that was, the first in front.
        self._waiting: dict[RequestKey, tuple[Reply, float]] = {}
        self._given_up: dict[RequestKey, tuple[Reply, float]] = {}

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._waiting or key in self._given_up

    def begin(self, key: RequestKey, reply: Reply) -> None:
        """``reply`` is what the call will be answered with."""
        self._waiting[key] = reply, time.monotonic()

    def take(self, key: RequestKey) -> Reply | None:
        """The call has come; None if its request did not come ahead."""
        entry = self._waiting.pop(key, None) or self._given_up.pop(key, None)
        return None if entry is None else entry[0]

    def give_up_old(self) -> None:
        """End those whose calls do not come. To be called now and then."""
        now = time.monotonic()
        for key in _older(self._waiting, now - CALL_PATIENCE_S):
            reply, _ = self._waiting.pop(key)
            self._given_up[key] = reply, now
            if not reply.done():
                logger.warning("request %s attempt %d: its call did not come; aborted", *key)
                self._abort(key)
        for key in _older(self._given_up, now - RETENTION_S):
            del self._given_up[key]

    def close(self) -> None:
        """End all."""
        for reply, _ in [*self._waiting.values(), *self._given_up.values()]:
            reply.cancel()
        self._waiting.clear()
        self._given_up.clear()


def _older(entries: dict[RequestKey, tuple[Reply, float]], before: float) -> list[RequestKey]:
    old = []
    for key, (_, at) in entries.items():
        if at >= before:
            break
        old.append(key)
    return old
