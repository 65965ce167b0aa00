"""Who hears what an engine says. It is said at once, on the engine's own thread, and taken into the actor's books when its event
loop comes to that: a step whose tokens are plain wakes no event loop, and of those that say more the first of many does."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from actors.delta_stream import SubscriberStream
from cluster.outputs import EngineLoad, StepOutput, StreamItem
from cluster.request import RequestKey

logger = logging.getLogger("bireme.runner")

# The books are so many steps behind at most.
_MAX_UNREAD = 128


class Subscriptions:
    """The streams of an engine's subscribers. ``publish`` is for any thread, all else for the actor's loop.

    Args:
        subscriber_of: whose a request is; None if nobody wants to know. Called on the engine's thread.
        ask_to_read: called when the loop should ``take``, soon; from any thread.
        on_loop: has a function called there, from any thread.
    """

    def __init__(
        self,
        subscriber_of: Callable[[RequestKey], str | None],
        ask_to_read: Callable[[], None],
        on_loop: Callable[[Callable[[], None]], object],
    ) -> None:
        self._streams: dict[str, SubscriberStream] = {}
        self._subscriber_of = subscriber_of
        self._ask_to_read = ask_to_read
        self._on_loop = on_loop
        self._unread: deque[tuple[float, StepOutput]] = deque()
        # Under it nothing is said, and streams come and go.
        self._lock = threading.RLock()

    def __contains__(self, subscriber: str) -> bool:
        return subscriber in self._streams

    def __len__(self) -> int:
        return len(self._streams)

    def publish(self, output: StepOutput) -> None:
        """Say it to whom it concerns."""
        said: dict[str, list[StreamItem]] = {subscriber: [tokens] for subscriber, tokens in output.plain.items()}
        for delta in output.deltas:
            subscriber = self._subscriber_of((delta.request_id, delta.attempt))
            if subscriber is not None:
                said.setdefault(subscriber, []).append(delta)
        with self._lock:
            self._unread.append((time.monotonic(), output))
            streams = [(self._streams.get(subscriber), items) for subscriber, items in said.items()]
            for stream, items in streams:
                if stream is not None:
                    self._guarded(stream, stream.put, items)
        for stream, _ in streams:
            if stream is not None:
                stream.flush()
        if output.deltas or len(self._unread) >= _MAX_UNREAD:
            self._ask_to_read()

    def _guarded(self, stream: SubscriberStream, say: Callable[..., None], what: Any) -> None:
        try:
            say(what)
        except Exception:  # which ends one stream, and neither the engine nor other streams
            logger.exception("a stream cannot say what the engine does; it ends")
            self._on_loop(stream.close)

    def take(self) -> list[tuple[float, StepOutput]]:
        """What was published since the last time, in that order, and when."""
        unread = self._unread
        return [unread.popleft() for _ in range(len(unread))]

    def say(self, subscriber: str, items: Sequence[StreamItem]) -> None:
        """What the actor itself has to say; to nobody if the subscriber has no stream."""
        stream = self._streams.get(subscriber)
        if stream is not None:
            stream.put(items)
            stream.flush()

    def say_to_all(self, items: Sequence[StreamItem]) -> None:
        """As ``say``, to every subscriber."""
        for subscriber in self._streams:
            self.say(subscriber, items)

    def tell(self, load_for: Callable[[str], EngineLoad]) -> None:
        """Have every stream say what the engine takes, if that is news: ``load_for`` its subscriber."""
        for subscriber, stream in self._streams.items():
            self._guarded(stream, stream.tell, load_for(subscriber))
        for stream in self._streams.values():
            stream.flush()

    def open(
        self, subscriber: str, stream: SubscriberStream, first: Callable[[], Iterable[Sequence[StreamItem]]]
    ) -> None:
        """Say everything on ``stream`` from now on, and before that ``first()``, during which nothing is published: who is told
        there what it missed gets nothing twice. Another stream of the subscriber's ends."""
        with self._lock:
            self.end(subscriber)
            for items in first():
                stream.put(items)
            self._streams[subscriber] = stream
        stream.flush()

    def forget(self, subscriber: str, stream: SubscriberStream) -> bool:
        """``stream`` says nothing more; whether it was the subscriber's."""
        with self._lock:
            is_its = self._streams.get(subscriber) is stream
            if is_its:
                del self._streams[subscriber]
        return is_its

    def end(self, subscriber: str) -> None:
        """End the subscriber's stream, if there is one, once everything is said."""
        if subscriber in self._streams:
            self._streams[subscriber].close()

    def end_all(self) -> None:
        """As ``end``, of every subscriber."""
        for stream in self._streams.values():
            stream.close()

    def renew(self, subscriber: str) -> None:
        """The subscriber of a leased stream is still there."""
        stream = self._streams.get(subscriber)
        if stream is not None and stream.lease is not None:
            stream.lease.heard()

    def end_leases(self, silence_s: float) -> list[str]:
        """End the streams of those that were not heard of for longer, and name them."""
        silent = [(name, s) for name, s in self._streams.items() if s.lease is not None and s.lease.tick() > silence_s]
        for subscriber, stream in silent:
            stream.close()
            self.forget(subscriber, stream)
        return [subscriber for subscriber, _ in silent]
