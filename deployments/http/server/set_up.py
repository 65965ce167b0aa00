"""What every HTTP server of Ray Serve gets in its own process: an ingress's, and those of Serve's own proxies.

Serve imports ``set_up_http_servers`` by the name that ``serve_environment`` gives it, in each process that takes requests.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from uvicorn.protocols.http import httptools_impl

from deployments.http.server.door import HttpDoor
from deployments.http.server.header_timeout import limit_header_time
from deployments.http.server.local_socket import listen_beside_ports
from deployments.http.server.pipelining import tell_who_is_answered
from deployments.http.server.room import RoomCycle
from deployments.native.step_writer import native_module
from deployments.start.direct_addresses import keep_addresses_direct


def set_up_http_servers() -> list[Middleware]:
    """Change how uvicorn serves in this process; call it before a connection is made.

    Returns:
        What Serve is to put around the requests it takes.
    """
    keep_addresses_direct()
    install_cycle()
    limit_header_time()
    tell_who_is_answered()
    listen_beside_ports()
    return [Middleware(HttpDoor)]


def install_cycle() -> None:
    """Have this process's HTTP servers answer with the last of our cycles, which is all of them: ``RoomCycle`` is a
    ``WritingCycle``, and that an ``UnchunkedCycle``."""
    native_module()  # compiled and loaded before anybody waits
    # The protocol looks for it by this name.
    vars(httptools_impl)["RequestResponseCycle"] = RoomCycle
