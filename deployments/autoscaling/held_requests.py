"""Where there may be no engine, ingresses tell each other that they live and how many requests they hold."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping

from cluster.scaling.hold import HoldShare, hold_share
from deployments.autoscaling.store import ScalingStore
from deployments.autoscaling.store_entry import StoreEntry

PERIOD_S = 0.5
# Who has said nothing for so long is gone: the others have its part.
_GONE_S = 5.0
# What it left behind is removed then.
_FORGOTTEN_S = 60.0
_PREFIX = "held."


class HeldByOthers:
    """What all ingresses said last; one that says nothing new is forgotten, by this process's clock.

    What was there at the first look may be of one that was killed long ago: it counts once it has changed.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        # What each said, when that was seen first, and whether somebody lives who says it.
        self._heard: dict[str, tuple[bytes, float, bool]] | None = None

    def hear(self, entries: Mapping[str, bytes]) -> dict[str, int]:
        """By name, what those hold that live, from their entries as they are now."""
        now, before, is_first = self._now(), self._heard or {}, self._heard is None
        self._heard = {
            name: before[name] if name in before and before[name][0] == text else (text, now, not is_first)
            for name, text in entries.items()
        }
        alive = {name: text for name, (text, at, lives) in self._heard.items() if lives and now - at <= _GONE_S}
        return {name: count for name, text in alive.items() if (count := _count(text)) is not None}

    def forgotten(self) -> list[str]:
        """Names of those who have said nothing new for so long that nobody needs their entries."""
        now = self._now()
        return [name for name, (_, at, _) in (self._heard or {}).items() if now - at > _FORGOTTEN_S]


def _entry(number: int, num_held: int) -> bytes:
    """It differs from the one before by its number."""
    return json.dumps([number, num_held]).encode()


def _count(entry: bytes) -> int | None:
    try:
        _, count = json.loads(entry)
        return int(count)
    except (ValueError, TypeError):  # of another version of this project
        return None


class HeldRequests:
    """Of one ingress.

    Args:
        ingress: unique among the application's ingresses.
        num_held: asked on a thread.
        tell: told the share on the event loop that runs ``run``.
        open_store: called on that thread, again after a failure.
    """

    def __init__(
        self,
        ingress: str,
        num_held: Callable[[], int],
        tell: Callable[[HoldShare], None],
        open_store: Callable[[], ScalingStore],
    ) -> None:
        self._name = ingress
        self._num_held, self._tell = num_held, tell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard, self._number = HeldByOthers(), 0
        # Where the store does not answer, what was known last goes on to hold.
        trouble = "other ingresses are not told what is held"
        self._entry = StoreEntry(_PREFIX + ingress, self._look, open_store, trouble, PERIOD_S)

    async def run(self) -> None:
        """Until this is cancelled."""
        self._loop = asyncio.get_running_loop()
        await self._entry.run()

    def _look(self, store: ScalingStore) -> None:
        assert self._loop is not None
        self._number += 1
        store.put(_PREFIX + self._name, _entry(self._number, self._num_held()))
        found = {name.removeprefix(_PREFIX): text for name, text in store.all(_PREFIX).items()}
        held = self._heard.hear(found)
        for name in self._heard.forgotten():
            store.remove(_PREFIX + name)
        self._loop.call_soon_threadsafe(self._tell, hold_share(self._name, held))
