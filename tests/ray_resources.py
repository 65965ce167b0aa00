"""What is reserved of a Ray cluster's resources."""

from __future__ import annotations

import ray


def used() -> dict[str, float]:
    """What is reserved of all of Ray's resources, but for objects' memory; placement groups' parts are in it already."""
    free = ray.available_resources()
    taken = {name: round(all_of - free.get(name, 0.0), 4) for name, all_of in ray.cluster_resources().items()}
    return {n: amount for n, amount in taken.items() if amount and "_group_" not in n and n != "object_store_memory"}
