"""While requests wait for an engine to start, Serve's controller looks around ten times a second: a start waits for no tick."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger("ray.serve")

# Serve hears of a request some milliseconds after it came; it decides in one look and starts in the next.
_FIRST_DELAYS_S = (0.02, 0.03, 0.05)
_DELAY_S = 0.1
# Without an engine; behind this a start takes so long that a tick is nothing.
_LONGEST_S = 60.0
# With some: whether another one starts is decided within this time, or Serve does not want it.
_DECIDED_S = 1.5
# A load that Serve wants no more engines for does not keep the controller busy.
_ASK_AGAIN_S = 10.0
_LOOK_TIMEOUT_S = 5.0


class PromptStart:
    """Asks the controller to look, as long as a start is waited for.

    Args:
        waits: whether requests wait and there is no engine.
        look: has the controller look once, and returns when it has.
        expect: called when they begin to wait.
        too_few: how many engines there are, where those are too few for who waits and there may be more; else 0.
    """

    def __init__(
        self,
        waits: Callable[[], bool],
        look: Callable[[], Awaitable[None]],
        expect: Callable[[], Awaitable[None]] | None = None,
        too_few: Callable[[], int] = lambda: 0,
    ) -> None:
        self._expect = expect
        self._waits = waits
        self._look = look
        self._too_few = too_few
        self._asked = 0, 0.0  # with how many engines the controller was asked for more, and when
        self._task: asyncio.Task | None = None

    def hurry(self) -> None:
        """A request came, or an engine said how it is; if somebody waits for an engine to start, begin to ask."""
        if self._task is not None and not self._task.done():
            return
        loop = asyncio.get_running_loop()
        if self._waits():
            self._task = loop.create_task(self._run())
        elif num_engines := self._too_few():
            asked_with, asked_at = self._asked
            if num_engines != asked_with or loop.time() - asked_at > _ASK_AGAIN_S:
                self._asked = num_engines, loop.time()
                self._task = loop.create_task(self._ask(self._too_few, _DECIDED_S))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        expecting = self._expect() if self._expect else None
        await asyncio.gather(self._ask(self._waits, _LONGEST_S), *([expecting] if expecting else []))

    async def _ask(self, still: Callable[[], object], longest_s: float) -> None:
        until = asyncio.get_running_loop().time() + longest_s
        for delay in itertools.chain(_FIRST_DELAYS_S, itertools.repeat(_DELAY_S)):
            await asyncio.sleep(delay)
            if not still() or asyncio.get_running_loop().time() > until:
                return
            try:
                await asyncio.wait_for(self._look(), _LOOK_TIMEOUT_S)
            except Exception as error:  # its own ticks go on
                logger.warning("Serve's controller does not look around: %s: %s", type(error).__name__, error)
                return
