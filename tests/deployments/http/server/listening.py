"""An application behind a port of this machine: uvicorn, as Ray Serve starts it, on the event loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp

from tests.waiting import until


class Listening(NamedTuple):
    """A server that takes connections."""

    port: int
    server: uvicorn.Server


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, host: str = "127.0.0.1", port: int = 0, **settings: Any) -> AsyncIterator[Listening]:
    """Until the end, which waits for the clients. ``port`` 0: a free one; ``settings``: others of uvicorn's."""
    config = uvicorn.Config(app, interface="asgi3", lifespan="off", log_config=None, **settings)
    server = uvicorn.Server(config)
    with socket.create_server((host, port)) as listener:
        port = listener.getsockname()[1]
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started, 20)
            yield Listening(port, server)
        finally:
            server.should_exit = True
            await task
