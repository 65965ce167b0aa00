"""Replies that may be told together: who waits for some hears of a failure at once, and of answers a moment after the first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from cluster.outputs import GenerateReply

# An answer's tokens say that it is over; the reply only when it began.
_MOMENT_S = 0.1


class ReplyGroups:
    """Belongs to one event loop.

    Args:
        replies: those that are awaited.
        death: of whom they are awaited; done when none comes any more.
    """

    def __init__(self, replies: Iterable[asyncio.Future], death: asyncio.Future) -> None:
        self._death = death
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._num_open = 0
        for reply in replies:
            self._num_open += 1
            reply.add_done_callback(self._came)
        death.add_done_callback(self._died)
        if death.done():
            self._news.set()

    async def wait(self) -> None:
        """Return when there are replies to tell that were not told before."""
        await self._news.wait()
        self._news.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Wait for nothing more."""
        self._death.remove_done_callback(self._died)
        if self._timer is not None:
            self._timer.cancel()

    def _came(self, reply: asyncio.Future) -> None:
        self._num_open -= 1
        is_answer = not reply.cancelled() and reply.exception() is None and isinstance(reply.result(), GenerateReply)
        if not is_answer or not self._num_open:
            self._news.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_MOMENT_S, self._news.set)

    def _died(self, death: asyncio.Future) -> None:
        self._news.set()
