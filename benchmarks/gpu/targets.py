"""What the GPU benchmarks are measured against."""

from __future__ import annotations

# A decode step at 1k context of (model, rows) may take so many times the floor: F, all its matmuls alone, and KV, its context
# at copy bandwidth.
DECODE = {
    ("llama_8b", 1): ("F", 1.12),
    ("llama_8b", 64): ("F + KV", 1.15),
    ("smollm2", 1): ("F", 1.6),
    ("smollm2", 64): ("F + KV", 1.3),
}
# Share of the matmul peak that prompts must reach.
PREFILL_SHARE = 0.7
# Step over device time: in process from 8 to 256 rows, and through HTTP.
STEP_RATIO, HTTP_RATIO = 1.03, 1.08


def verdict(value: float, wanted: float, at_most: bool = True) -> str:
    """What was wanted of ``value``, and by how much it is missed."""
    missed = value > wanted if at_most else value < wanted
    return f"wanted {'<=' if at_most else '>='} {wanted:g}" + (
        f", MISSED by {abs(value - wanted):.3f}" if missed else ""
    )
