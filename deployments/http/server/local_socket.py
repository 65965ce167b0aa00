"""A Unix socket beside the port of each HTTP server, for the HAProxy of the same machine: a token costs both less than over TCP.

``haproxy_on_loopback.sh`` writes it where Serve wrote the port. Others use the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import os
import socket
from pathlib import Path
from typing import Any

from uvicorn import Server

from deployments.start.run_files.private_folder import not_private
from deployments.start.serve_environment import HTTP_SOCKETS, haproxy_is_used

logger = logging.getLogger("ray.serve")

_PROTOCOLS = (
    ("uvicorn.protocols.http.h11_impl", "H11Protocol"),
    ("uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol"),
)
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
        if self._path.exists():
            if _is_served(self._path):
                raise FileExistsError(f"another server listens at {self._path}")
            self._path.unlink(missing_ok=True)
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


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(str(path))
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
    return True


def listen_beside_ports() -> None:
    """Have every HTTP server that starts in this process listen there, too, where HAProxy is used."""
    if HTTP_SOCKETS not in os.environ or not haproxy_is_used() or hasattr(Server.startup, "listens_beside_ports"):
        return
    for module, name in _PROTOCOLS:
        with contextlib.suppress(ImportError):  # httptools is optional
            protocol = getattr(importlib.import_module(module), name)
            protocol.connection_made = _addressed(protocol.connection_made)
    startup, shutdown = Server.startup, Server.shutdown

    @functools.wraps(startup)
    async def start(self: Server, sockets: list[socket.socket] | None = None) -> None:
        listening = _listen(sockets)
        vars(self)["listening_beside_port"] = listening
        if listening is not None:
            self.config.backlog = max(self.config.backlog, _BACKLOG)
        await startup(self, [*(sockets or ()), listening.socket] if listening else sockets)

    @functools.wraps(shutdown)
    async def stop(self: Server, sockets: list[socket.socket] | None = None) -> None:
        if (listening := vars(self).get("listening_beside_port")) is not None:
            listening.remove()  # as long as the port is this server's
        await shutdown(self, sockets)

    start.listens_beside_ports = True  # type: ignore[attr-defined]
    Server.startup, Server.shutdown = start, stop  # type: ignore[method-assign]


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
