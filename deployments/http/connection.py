"""The client at the other end: who it is, whether its leaving is noticed, and working for it only as long as it is there."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from starlette.types import Message, Receive, Scope

from cluster.tenant import Tenant
from deployments.http.body_writer import body_writer
from deployments.start.serve_environment import haproxy_is_ours, haproxy_is_used

# Whoever has an IPv6 address has so many.
_NETWORK_BITS = 64

_Result = TypeVar("_Result")


class ClientGoneError(Exception):
    """The client closed its connection before the answer was complete."""


async def _stays() -> Message:
    return await asyncio.get_running_loop().create_future()


class Peer(NamedTuple):
    """The client of one request.

    Attributes:
        name: under which it takes turns for what the ingress itself does: its API key where there are several, else its address.
        receive: tells when it has gone, once its body was read.
    """

    name: str = ""
    receive: Receive = _stays

    @classmethod
    def of(cls, scope: Scope, receive: Receive, tenant: Tenant) -> Peer:
        """Who sent a request, whose API key is ``tenant``'s."""
        return cls(tenant.id or _address(scope), receive)


def _address(scope: Scope) -> str:
    return _network(scope["client"][0] if scope.get("client") else "")


@functools.lru_cache(maxsize=1024)
def _network(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(address), _NETWORK_BITS), strict=False))


def may_leave_unnoticed(scope: Scope) -> bool:
    """Whether nothing may tell of a client that leaves before its answer begins, or its connection may be closed for silence:
    there is an HAProxy that splices requests, or a proxy of which nothing is known.

    Serve's own proxy and HAProxy as ``bireme serve`` starts it tell at once, and are patient.
    """
    if haproxy_is_used() and not haproxy_is_ours():
        return True
    headers = scope.get("headers", ())
    forwarded = b",".join(value for name, value in headers if name == b"x-forwarded-for")
    # Our HAProxy adds the address that it sees.
    num_proxies = len([address for address in forwarded.split(b",") if address.strip()]) - haproxy_is_used()
    return num_proxies > 0 or any(name in (b"via", b"forwarded") for name, _ in headers)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run ``work`` and return its result. Cancelled it must end at once: whoever serves the request may cancel it, too.

    Raises:
        ClientGoneError: the client went away first; ``work`` was cancelled and has ended.
    """
    # The work has no task of its own, which would cost as much as many a token; nor has waiting for the client, where its
    # connection ends here.
    task = asyncio.current_task()
    assert task is not None
    leaving, connection = _Leaving(task), body_writer()
    gone = None
    if connection is None:
        gone = asyncio.ensure_future(_disconnected(receive))
        gone.add_done_callback(lambda _: leaving.begin())
    elif not connection.when_gone(leaving.begin):
        connection.when_gone(None)
        work.close()
        raise ClientGoneError
    try:
        return await work
    except asyncio.CancelledError:
        if leaving.is_all:
            raise ClientGoneError from None
        raise
    finally:
        leaving.end()
        if gone is not None:
            gone.cancel()
        elif connection is not None:
            connection.when_gone(None)


class _Leaving:
    """Cancels a task once a client leaves, and knows whether nobody else did."""

    def __init__(self, task: asyncio.Task) -> None:
        self._task = task
        self._has_begun = self._is_over = False

    def begin(self) -> None:
        """The client has gone."""
        if not self._is_over and not getattr(self._task, "cancelling", int)():
            self._has_begun = True
            self._task.cancel()

    @property
    def is_all(self) -> bool:
        """Whether the task was cancelled for this; where Python does not count, it may have been for something else, too."""
        return self._has_begun and getattr(self._task, "cancelling", lambda: 1)() == 1

    def end(self) -> None:
        """The work has ended."""
        self._is_over = True
        if self._has_begun and hasattr(self._task, "uncancel"):
            self._task.uncancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
