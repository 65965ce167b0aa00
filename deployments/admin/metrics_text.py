"""What GET /metrics answers with: Ray's own metrics, those of this project that Ray exports, and those under vLLM's names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.api_errors import ApiError, bad_request, shown
from deployments.admin.node_metrics import NodeMetrics

PARTS = ("vllm", "bireme", "ray")
_OURS = b"ray_bireme_"


def wanted_parts(only: str | None) -> tuple[str, ...]:
    """What ``?only=`` names, with commas; all without it.

    Raises:
        ApiError: 400, it names something else.
    """
    if only is None:
        return PARTS
    wanted = tuple(only.split(","))
    if not set(wanted) <= set(PARTS):
        raise bad_request(f"only: got {shown(only)}, allowed are {', '.join(PARTS)}, several with commas", "only")
    return wanted


async def metrics_text(node: NodeMetrics, vllm: Callable[[], bytes], only: str | None) -> bytes:
    """Prometheus text.

    Args:
        vllm: writes the part under vLLM's names, on another thread.
        only: see ``wanted_parts``.
    Raises:
        ApiError: 400, or 503: Ray's agent does not answer, and its part was asked for.
    """
    wanted = wanted_parts(only)
    text = await asyncio.to_thread(vllm) if "vllm" in wanted else b""
    if {"bireme", "ray"} & set(wanted):
        try:
            found = await node.text()
        except ApiError:
            if only is not None:
                raise
            # What an autoscaler looks at does not depend on the agent.
            return text + b"# Ray's metrics agent on this node does not answer\n"
        text += await asyncio.to_thread(_of_parts, found, wanted)
    return text


def _of_parts(text: bytes, wanted: tuple[str, ...]) -> bytes:
    if {"bireme", "ray"} <= set(wanted):
        return text
    ours = "bireme" in wanted
    return b"".join(line for line in text.splitlines(keepends=True) if _name(line).startswith(_OURS) == ours)


def _name(line: bytes) -> bytes:
    """Of the metric that a line is about."""
    if not line.startswith(b"# "):
        return line
    words = line.split(b" ", 3)
    return words[2] if len(words) > 2 else b""
