"""What a GPU's memory went to, beside what the engine's plan set aside."""

from __future__ import annotations


def memory_text(memory: dict[str, int]) -> str:
    """One line from the ``memory`` of an engine's figures; what others use on this GPU counts as the engine's."""
    parts = {name: memory[f"{name}_bytes"] for name in ("weight", "kv_cache", "graph")}
    used = memory["total_bytes"] - memory["free_bytes"]
    rest = used - sum(parts.values())
    shares = ", ".join(f"{name} {_gib(value)}" for name, value in parts.items())
    return (
        f"memory in GiB: {_gib(used)} of {_gib(memory['total_bytes'])} used: {shares} "
        f"({memory['num_graphs']} graphs), steps and context {_gib(rest)} (set aside: {_gib(memory['step_bytes'])})"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f}"
