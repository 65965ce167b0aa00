"""Load the built library into Paddle and call its ops by name; the one place that knows where Paddle's versions differ."""

from __future__ import annotations

import functools
from typing import Any

import paddle

from gpu_ops.build import build


@functools.cache
def _runner() -> Any:
    # paddle.utils.cpp_extension also registers static-graph prototypes, and imports setuptools; neither is needed here.
    paddle.base.core.load_op_meta_info_and_register_op(str(build()))
    try:
        return paddle._C_ops._run_custom_op  # Paddle 3.x
    except AttributeError:
        return paddle.base.core.eager._run_custom_op  # Paddle 2.6


def run_op(name: str, *arguments: Any) -> list[paddle.Tensor]:
    """Run the custom op ``bireme_<name>``: its input tensors in order, then its attributes.

    The interpreter lock is released while the kernel runs.
    """
    return _runner()("bireme_" + name, *arguments)
