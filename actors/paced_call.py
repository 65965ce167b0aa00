"""A function that an event loop calls when any thread asks for it, and not again within a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class PacedCall:
    """Called at once by who asks after a pause, and then every ``each_s`` for as long as somebody asks: the loop is woken by the
    first who does. While nobody asks nothing happens.

    Args:
        function: called on the loop.
        each_s: the shortest time between two calls.
        on_loop: has a function called there, from any thread.
    """

    def __init__(
        self, function: Callable[[], None], each_s: float, on_loop: Callable[[Callable[[], None]], object]
    ) -> None:
        self._function = function
        self._each_s = each_s
        self._on_loop = on_loop
        self._is_wanted = False
        self._is_awake = False
        self._timer: asyncio.TimerHandle | None = None

    def ask(self) -> None:
        """Have it called; from any thread."""
        self._is_wanted = True
        if not self._is_awake:
            self._is_awake = True
            self._on_loop(self._woken)

    def now(self) -> None:
        """Call it for once without waiting; on the loop."""
        self._function()

    def _woken(self) -> None:
        # The timer looks, too, and two who asked at the same time both wake the loop.
        if self._timer is None:
            self._look()

    def _look(self) -> None:
        # In this order: who asks from here on is seen below, or finds this asleep and wakes it.
        self._timer, self._is_awake = None, False
        if not self._is_wanted:
            return
        self._is_awake, self._is_wanted = True, False
        self._timer = asyncio.get_running_loop().call_later(self._each_s, self._look)
        self._function()
