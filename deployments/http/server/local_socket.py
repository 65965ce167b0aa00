"""A Unix socket beside the port of each HTTP server, for the HAProxy of the same machine: a token costs both less than over TCP.

``haproxy_on_loopback.sh`` writes it where Serve wrote the port. Others use the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
from pathlib import Path
from typing import Any

from uvicorn import Server

from cluster.process.unix_sockets import has_listener
from deployments.http.server.protocols import http_protocols
from deployments.start.run_files.private_folder import not_private
from deployments.start.serve_environment import HTTP_SOCKETS, haproxy_is_used

logger = logging.getLogger("ray.serve")

_LOOPBACK = "127.0.0.1"
# Connections that are not accepted yet, as far as the kernel allows. One more fails at once, where TCP tries again, and HAProxy
# takes its server for down; uvicorn has 2,048.
_BACKLOG = 65_535


class _Listening:
    """A socket that listens, and its file."""

    def __init__(self, port: int, folder: Path) -> None:
        """Raises OSError where there can be none: several servers may share a port."""
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if (fault := not_private(folder)) is not None:
            raise PermissionError(fault)
        self._path = folder / str(port)
        with contextlib.suppress(FileNotFoundError):
            if has_listener(self._path):
                raise FileExistsError(f"another server listens at {self._path}")
            self._path.unlink()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.bind(str(self._path))
        except OSError:
            self.socket.close()
            raise
        self._inode = self._path.stat().st_ino

    def remove(self) -> None:
        """Unless it is of a server that has the port by now."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


def listen_beside_ports() -> None:
    """Have every HTTP server that starts in this process listen there, too, where HAProxy is used."""
    if HTTP_SOCKETS not in os.environ or not haproxy_is_used() or hasattr(Server.serve, "listens_beside_ports"):
        return
    for protocol in http_protocols():
        protocol.connection_made = _addressed(protocol.connection_made)
    serve = Server.serve

    @functools.wraps(serve)
    async def serve_both(self: Server, sockets: list[socket.socket] | None = None) -> None:
        listening = _listen(sockets)
        if listening is None:
            await serve(self, sockets)
            return
        self.config.backlog = max(self.config.backlog, _BACKLOG)
        try:
            await serve(self, [*(sockets or ()), listening.socket])
        finally:
            listening.remove()

    serve_both.listens_beside_ports = True  # type: ignore[attr-defined]
    Server.serve = serve_both  # type: ignore[method-assign]


def _listen(sockets: list[socket.socket] | None) -> _Listening | None:
    ports = [one.getsockname()[1] for one in sockets or () if one.family == socket.AF_INET]
    if len(ports) != 1:
        return None
    try:
        return _Listening(ports[0], Path(os.environ[HTTP_SOCKETS]))
    except OSError as error:
        logger.warning("HAProxy reaches port %d over TCP: %s", ports[0], error)
        return None


def _addressed(connection_made: Any) -> Any:
    """A connection over a Unix socket has no addresses; the other end of this one is on this machine."""

    @functools.wraps(connection_made)
    def made(self: Any, transport: asyncio.Transport) -> None:
        connection_made(self, transport)
        if (sock := transport.get_extra_info("socket")) is not None and sock.family == socket.AF_UNIX:
            self.client, self.server = (_LOOPBACK, 0), (_LOOPBACK, int(Path(self.server[0]).name))

    return made
