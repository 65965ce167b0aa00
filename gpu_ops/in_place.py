"""Tensors that an op writes in place."""

from __future__ import annotations

import paddle


def require_contiguous(tensor: paddle.Tensor, name: str) -> None:
    """Raise ValueError, naming the argument, if ``tensor`` is a view with gaps: Paddle would hand the op a copy of it."""
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous: the op writes it in place, and a write into a view would be lost")
