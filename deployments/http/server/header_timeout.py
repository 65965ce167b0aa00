"""A time limit for the header of a request, in the servers that Ray Serve runs: its own proxy and the ports of replicas.

uvicorn waits for ever for a connection that has sent nothing, or a part of a header, and each of them holds a descriptor. HAProxy
has a limit of its own (``haproxy_on_loopback.sh``).
"""

from __future__ import annotations

import asyncio
import functools
import os
from typing import Any

from cluster.errors import ConfigError
from deployments.http.server.protocols import http_protocols

HEADER_TIMEOUT = "BIREME_HEADER_TIMEOUT_S"
MAX_PER_ADDRESS = "BIREME_MAX_CONNECTIONS_PER_ADDRESS"
# The script that starts HAProxy has the same defaults.
_DEFAULT_HEADER_TIMEOUT_S = 10
_ALLOWED = {HEADER_TIMEOUT: range(1, 3601), MAX_PER_ADDRESS: range(1_000_001)}

# How often a connection is looked at: a header has at least half of its time.
_LOOKS = 2


def check_connection_limits() -> None:
    """Raise ConfigError for a limit of connections that is no number it may be."""
    for name, allowed in _ALLOWED.items():
        value = os.environ.get(name, "")
        if value and not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) in allowed):
            raise ConfigError(f"{name} must be an integer from {allowed[0]} to {allowed[-1]}, got {value[:40]!r}", name)


def limit_header_time() -> None:
    """Have every connection that uvicorn accepts in this process closed if it does not get a whole header in time."""
    for protocol in http_protocols():
        if not hasattr(protocol.connection_made, "limits_header_time"):
            protocol.connection_made = _watched(protocol.connection_made)


def _watched(connection_made: Any) -> Any:
    check_connection_limits()
    timeout_s = int(os.environ.get(HEADER_TIMEOUT) or _DEFAULT_HEADER_TIMEOUT_S)

    @functools.wraps(connection_made)
    def watched(self: Any, transport: asyncio.Transport) -> None:
        connection_made(self, transport)
        self.loop.call_later(timeout_s / _LOOKS, _look, self, timeout_s / _LOOKS, _header_of(self), 1)

    watched.limits_header_time = True  # type: ignore[attr-defined]
    return watched


def _header_of(protocol: Any) -> tuple[Any] | None:
    """What the header that is awaited comes after: the last request, or nothing. None while a request is served, or while uvicorn
    itself counts how long a connection is idle between two."""
    cycle = protocol.cycle
    is_waiting = (cycle is None or cycle.response_complete) and protocol.timeout_keep_alive_task is None
    return (cycle,) if is_waiting else None


def _look(protocol: Any, every_s: float, before: tuple[Any] | None, times: int) -> None:
    if protocol.transport.is_closing():
        return
    awaited = _header_of(protocol)
    is_same = awaited is not None and before is not None and awaited[0] is before[0]
    if is_same and times >= _LOOKS:
        protocol.transport.close()
        return
    protocol.loop.call_later(every_s, _look, protocol, every_s, awaited, times + 1 if is_same else 1)
