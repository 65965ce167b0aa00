"""Turns at an ingress's event loop: in each pass one request begins, and once none is left one call of Serve's that follows.

A request takes about a millisecond of Python before it is sent to its engine, and Serve's call of it as much again. In one pass
for all of a burst, they would keep the loop from first tokens that have come meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

# None is put off for longer while others begin: an engine waits ten seconds for the call of what came ahead.
_LONGEST_S = 0.1


class Turns:
    """First come, first served, of either kind. Belongs to one event loop."""

    def __init__(self) -> None:
        self._begins: deque[asyncio.Future[None]] = deque()
        self._calls: deque[tuple[float, Callable[[], None]]] = deque()
        self._is_taken = False  # somebody has had this pass
        self._is_given = False  # who waited has a turn, which it takes in the next pass

    async def begin(self) -> None:
        """Return when it is the caller's turn to begin a request: at once if nobody else has had this pass."""
        if not self._is_taken:
            self._take()
            return
        turn = asyncio.get_running_loop().create_future()
        self._begins.append(turn)
        await turn

    def add_call(self, call: Callable[[], None]) -> None:
        """Have ``call`` called when it is its turn."""
        self._calls.append((time.monotonic(), call))
        if not self._is_taken:
            self._take()

    def close(self) -> None:
        """Call nothing more."""
        self._calls.clear()

    def _take(self) -> None:
        self._is_taken = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        had_turn, self._is_given, self._is_taken = self._is_given, False, False
        while self._begins and not self._is_given:
            turn = self._begins.popleft()
            if not turn.done():  # who left does not take it
                turn.set_result(None)
                self._is_given = True
        is_late = bool(self._calls) and time.monotonic() - self._calls[0][0] > _LONGEST_S
        is_free = not had_turn and not self._is_given
        call = self._calls.popleft()[1] if self._calls and (is_free or is_late) else None
        if not is_free or call is not None:
            self._take()
        if call is not None:
            call()
