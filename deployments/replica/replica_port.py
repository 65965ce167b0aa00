"""Where a Serve replica listens for calls of other replicas."""

from __future__ import annotations

import ipaddress

import ray

from deployments.ray_private.serve import change_replica_address


def listen_where_the_node_does() -> None:
    """On a node whose address is a loopback one, have this replica listen there, like every other process of that node.

    Call it in a deployment's constructor: Serve opens the port right after. Serve 2.60 would open it on all interfaces, and a
    call carries pickled objects.
    """
    node = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(node).is_loopback:
        return
    change_replica_address(lambda address: address.replace("[::]", node if ":" not in node else f"[{node}]"))
