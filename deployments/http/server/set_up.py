"""What every HTTP server of Ray Serve gets in its own process: an ingress's, and those of Serve's own proxies.

Serve imports ``set_up_http_servers`` by the name that ``serve_environment`` gives it, in each process that takes requests.
"""

from __future__ import annotations

from starlette.middleware import Middleware

from deployments.http.server.direct_writes import write_directly
from deployments.http.server.door import HttpDoor
from deployments.http.server.header_timeout import limit_header_time
from deployments.http.server.http_1_0 import answer_http_1_0
from deployments.http.server.local_socket import listen_beside_ports
from deployments.http.server.room import count_requests
from deployments.start.direct_addresses import keep_addresses_direct


def set_up_http_servers() -> list[Middleware]:
    """Change how uvicorn serves in this process; call it before a connection is made.

    Returns:
        What Serve is to put around the requests it takes.
    """
    keep_addresses_direct()
    answer_http_1_0()
    write_directly()
    count_requests()
    limit_header_time()
    listen_beside_ports()
    return [Middleware(HttpDoor)]
