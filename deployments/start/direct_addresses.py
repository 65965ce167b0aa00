"""Addresses that gRPC in Python reaches directly, whatever proxy the environment names.

Serve's processes call each other by gRPC. It honours ``http_proxy`` (in lower case) for loopback and node addresses, too.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_VARIABLE = "no_grpc_proxy"
# Processes of the cluster are named by numbers. gRPC asks this variable alone where it is set, and takes ranges in it.
_DIRECT = ("0.0.0.0/0", "::/0", "localhost")


def keep_addresses_direct(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have no gRPC channel that is made from now on go through a proxy to an address of numbers; names keep theirs."""
    given = environment.get(_VARIABLE) or environment.get("no_proxy") or ""
    names = [name.strip() for name in given.split(",") if name.strip()]
    environment[_VARIABLE] = ",".join([*names, *(name for name in _DIRECT if name not in names)])
