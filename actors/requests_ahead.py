"""Requests that came before their calls: the ingress sends them straight to the engine's process, Serve brings the call later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from actors.live_requests import RETENTION_S
from cluster.outputs import AttachRequired, GenerateReply, NotAdmitted
from cluster.request import RequestKey

logger = logging.getLogger("bireme.runner")

Reply = GenerateReply | AttachRequired | NotAdmitted
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
        self._waiting: dict[RequestKey, tuple[asyncio.Task[Reply], asyncio.TimerHandle]] = {}

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._waiting

    def begin(self, key: RequestKey, running: asyncio.Task[Reply]) -> None:
        """``running`` is what the call will be answered with."""
        running.add_done_callback(_look)
        patience = asyncio.get_running_loop().call_later(CALL_PATIENCE_S, self._give_up, key)
        self._waiting[key] = running, patience

    def take(self, key: RequestKey) -> asyncio.Task[Reply] | None:
        """The call has come; None if its request did not come ahead."""
        running, timer = self._waiting.pop(key, (None, None))
        if timer is not None:
            timer.cancel()
        return running

    def close(self) -> None:
        """End all."""
        for running, timer in self._waiting.values():
            running.cancel()
            timer.cancel()
        self._waiting.clear()

    def _give_up(self, key: RequestKey) -> None:
        running, _ = self._waiting[key]
        if not running.done():
            logger.warning("request %s attempt %d: its call did not come; aborted", *key)
            self._abort(key)
        forgetting = asyncio.get_running_loop().call_later(RETENTION_S, self._waiting.pop, key, None)
        self._waiting[key] = running, forgetting


def _look(running: asyncio.Task[Reply]) -> None:
    """A refusal is for the call; asyncio need not complain if none comes."""
    if not running.cancelled():
        running.exception()
