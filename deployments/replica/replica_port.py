"""Where a Serve replica listens for calls of other replicas."""

from __future__ import annotations

import ipaddress

import ray
from ray.serve._private import replica


def listen_where_the_node_does() -> None:
    """On a node whose address is a loopback one, have this replica listen there, like every other process of that node.

    Call it in a deployment's constructor: Serve opens the port right after. Serve 2.60 would open it on all interfaces, and a
    call carries pickled objects.
    """
    node = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(node).is_loopback:
        return
    add_port = replica.add_port_to_grpc_server

    def add_port_on_loopback(server, address: str) -> int:
        return add_port(server, address.replace("[::]", node if ":" not in node else f"[{node}]"))

    replica.add_port_to_grpc_server = add_port_on_loopback
