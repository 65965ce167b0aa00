"""What comes on a token socket, one message after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from cluster.outputs import StreamItem
from deployments.replica.token_listener import RequestSender, listen


async def read_messages(
    path: str, subscriber: str, resume: dict[str, int], reached: Callable[[int, RequestSender], None] | None = None
) -> AsyncIterator[list[StreamItem]]:
    """Until the stream ends; errors as ``listen``."""
    messages: asyncio.Queue[list[StreamItem] | None] = asyncio.Queue()
    listening = asyncio.ensure_future(listen(path, subscriber, resume, messages.put_nowait, reached))
    listening.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        while (message := await messages.get()) is not None:
            yield message
        await listening
    finally:
        listening.cancel()
        await asyncio.wait((listening,))
