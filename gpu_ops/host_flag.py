"""Host cells that the device stream and the host share: stop flags (FastDeploy's set_stop and get_stop) and step events."""

from __future__ import annotations

import paddle

from gpu_ops.in_place import require_contiguous
from gpu_ops.loader import run_op


def set_stop(flag: paddle.Tensor, value: bool) -> None:
    """Write a bool [1] host tensor through its own pointer; slice assignment would move a pinned one to the GPU."""
    run_op("set_stop", flag, value)


def get_stop(flag: paddle.Tensor) -> bool:
    """Read a bool [1] host tensor through its own pointer."""
    return bool(run_op("get_stop", flag)[0].numpy()[0])


def event_record(cell: paddle.Tensor, ticket: int) -> None:
    """Mark int64 [1] host ``cell`` as having reached ``ticket`` and wake who waits for it.

    A pinned cell reaches it when the current GPU stream gets here; it keeps its memory as long as the process, because
    its address names its event. Tickets of a cell grow. Not inside a captured graph.
    """
    run_op("event_record", cell, ticket)


def event_wait(cell: paddle.Tensor, ticket: int) -> None:
    """Block, without the interpreter lock, until ``cell`` holds ``ticket`` or more."""
    run_op("event_wait", cell, ticket)


def copy_async(destination: paddle.Tensor, source: paddle.Tensor) -> None:
    """Copy all of ``source`` into ``destination`` (same type and number of elements) without waiting for the GPU.

    A host side should be pinned. Between two host tensors the copy is done when this returns.
    """
    require_contiguous(destination, "destination")
    run_op("copy_async", destination, source)
