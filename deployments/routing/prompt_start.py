"""While requests wait and there is no engine, Serve's controller looks around ten times a second: a start waits for no tick."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger("ray.serve")

# Serve hears of a request some milliseconds after it came; it decides in one look and starts in the next.
_FIRST_DELAYS_S = (0.02, 0.03, 0.05)
_DELAY_S = 0.1
# Behind this a start takes so long that a tick is nothing.
_LONGEST_S = 60.0
_LOOK_TIMEOUT_S = 5.0


class PromptStart:
    """Asks the controller to look, as long as a start is waited for.

    Args:
        waits: whether requests wait and there is no engine.
        look: has the controller look once, and returns when it has.
        expect: called when they begin to wait.
    """

    def __init__(
        self,
        waits: Callable[[], bool],
        look: Callable[[], Awaitable[None]],
        expect: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._expect = expect
        self._waits = waits
        self._look = look
        self._task: asyncio.Task | None = None

    def hurry(self) -> None:
        """A request came; if it waits for an engine, begin to ask."""
        if (self._task is None or self._task.done()) and self._waits():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        expecting = self._expect() if self._expect else None
        await asyncio.gather(self._ask(), *([expecting] if expecting else []))

    async def _ask(self) -> None:
        until = asyncio.get_running_loop().time() + _LONGEST_S
        for delay in itertools.chain(_FIRST_DELAYS_S, itertools.repeat(_DELAY_S)):
            await asyncio.sleep(delay)
            if not self._waits() or asyncio.get_running_loop().time() > until:
                return
            try:
                await asyncio.wait_for(self._look(), _LOOK_TIMEOUT_S)
            except Exception as error:  # its own ticks go on
                logger.warning("Serve's controller does not look around: %s: %s", type(error).__name__, error)
                return
