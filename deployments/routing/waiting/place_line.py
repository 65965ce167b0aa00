"""Sequences that were taken, and that no engine has room for now: first come, first served."""

from __future__ import annotations

import asyncio
import time
from collections import deque

# Whoever is first asks an engine so often though none has announced room: an announcement may be late, or an engine new.
_ASK_ANYWAY_S = 0.5


class PlaceLine:
    """Lets as many go to the engines as there is room for, so that those who wait cost nothing. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._last_went = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self) -> None:
        """Return when it is the caller's turn."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            while not turn.done():
                await asyncio.wait((turn,), timeout=_ASK_ANYWAY_S)
                if self._waiting and self._waiting[0] is turn and time.monotonic() - self._last_went > _ASK_ANYWAY_S:
                    self.go(1)
        finally:
            if not turn.done():
                self._waiting.remove(turn)

    def go(self, count: int) -> None:
        """There is room for so many of them."""
        while count > 0 and self._waiting:
            self._waiting.popleft().set_result(None)
            self._last_went = time.monotonic()
            count -= 1
