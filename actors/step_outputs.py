"""What an engine says goes two ways: to its subscribers at once, on the engine's own thread, and into the actor's books when its
event loop comes to that. So a step whose tokens are plain wakes no event loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, MutableMapping

from actors.delta_stream import SubscriberStream
from cluster.outputs import StepOutput, StreamItem
from cluster.request import RequestKey

# The books are so many steps behind at most.
_MAX_UNREAD = 32


class StepOutputs:
    """From the engine's thread to subscribers and to the actor's loop.

    Args:
        streams: by subscriber; they change under ``lock`` alone.
        subscriber_of: whose a request is; None if nobody wants to know. Called on the engine's thread.
        read: called there when the loop should ``take``.

    Attributes:
        lock: under it nothing is said, and what was said can be taken: who attaches in it misses nothing and gets nothing twice.
    """

    def __init__(
        self,
        streams: MutableMapping[str, SubscriberStream],
        subscriber_of: Callable[[RequestKey], str | None],
        read: Callable[[], None],
    ) -> None:
        self.lock = threading.RLock()
        self._streams = streams
        self._subscriber_of = subscriber_of
        self._read = read
        self._unread: deque[StepOutput] = deque()

    def publish(self, output: StepOutput) -> None:
        """Say it. Any thread may call it."""
        said: dict[str, list[StreamItem]] = {subscriber: [tokens] for subscriber, tokens in output.plain.items()}
        for delta in output.deltas:
            subscriber = self._subscriber_of((delta.request_id, delta.attempt))
            if subscriber is not None:
                said.setdefault(subscriber, []).append(delta)
        with self.lock:
            self._unread.append(output)
            streams = [(self._streams.get(subscriber), items) for subscriber, items in said.items()]
            for stream, items in streams:
                if stream is not None:
                    stream.put(items)
        for stream, _ in streams:
            if stream is not None:
                stream.flush()
        if output.deltas or len(self._unread) >= _MAX_UNREAD:
            self._read()

    def take(self) -> list[StepOutput]:
        """What was said since the last time, in that order."""
        unread = self._unread
        return [unread.popleft() for _ in range(len(unread))]
