"""The number of engines changes beside the load and the other faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tests.chaos.served.application import engine_states

# So many are left for the other faults.
FEWEST = 2


class Scaling:
    """What the application was told. That it has it is not waited for: a change may meet another one, and all other faults.

    Args:
        deploy: tells the application to have so many engines, and returns at once.
        num_engines: that it has.

    Attributes:
        wanted: engines that it was told to have last.
    """

    def __init__(self, deploy: Callable[[int], None], num_engines: int) -> None:
        self.wanted = num_engines
        self._deploy = deploy
        self._most = num_engines + 1

    async def begin(self, by: int) -> bool:
        """So many more or less; False if that would be too many or too few."""
        wanted = self.wanted + by
        if not FEWEST <= wanted <= self._most:
            return False
        self.wanted = wanted
        await asyncio.to_thread(self._deploy, wanted)
        return True

    async def is_changing(self) -> bool:
        return await asyncio.to_thread(engine_states) != {"RUNNING": self.wanted}

    async def end_with(self, num_engines: int, timeout_s: float) -> None:
        """Leave so many engines, and wait until they are there; fails after ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        if self.wanted != num_engines:
            self.wanted = num_engines
            await asyncio.to_thread(self._deploy, num_engines)
        while await self.is_changing():
            assert time.monotonic() < deadline, f"{engine_states()} instead of {num_engines} engines"
            await asyncio.sleep(0.3)
