"""Load the built library into Paddle and call its ops by name; the one place that knows where Paddle's versions differ."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle

from gpu_ops.build import build


@functools.cache
def _library() -> Path:
    """One for the life of the process, whatever becomes of the sources."""
    return build()


@functools.cache
def _runner() -> Callable[..., list[paddle.Tensor]]:
    """Calls an op by its whole name, with its arguments one after the other."""
    # paddle.utils.cpp_extension also registers static-graph prototypes, and imports setuptools; neither is needed here.
    library = _library()
    paddle.base.core.load_op_meta_info_and_register_op(str(library))
    try:
        of_paddle = paddle._C_ops._run_custom_op  # Paddle 3.x
    except AttributeError:
        of_paddle = paddle.base.core.eager._run_custom_op  # Paddle 2.6
    own = _own_runner(library)
    if own is None:
        return of_paddle

    def run(name: str, *arguments: Any) -> list[paddle.Tensor]:
        outputs = own(name, arguments)
        return of_paddle(name, *arguments) if outputs is NotImplemented else outputs

    return run


def _own_runner(library: Path) -> Callable[[str, tuple[Any, ...]], Any] | None:
    """What ``csrc/bindings/run_op.cc`` describes; None where the library has none."""
    own = getattr(ctypes.PyDLL(str(library)), "bireme_run_op", None)
    if own is not None:
        own.argtypes, own.restype = (ctypes.py_object, ctypes.py_object), ctypes.py_object
    return own


def native_function(name: str, result: Any, *arguments: Any, lets_others_run: bool = False) -> Callable[..., Any]:
    """A function ``bireme_<name>`` of the library that takes no tensors, by the ``ctypes`` types of its result and arguments.

    Args:
        lets_others_run: it is called without the interpreter lock, which takes longer to get back than a quick one takes.
    """
    kind = ctypes.CDLL if lets_others_run else ctypes.PyDLL
    function = getattr(kind(str(_library())), "bireme_" + name)
    function.restype, function.argtypes = result, arguments
    return function


def run_op(name: str, *arguments: Any) -> list[paddle.Tensor]:
    """Run the custom op ``bireme_<name>``: its input tensors in order, then its attributes.

    The interpreter lock is released while a kernel computes on the CPU or waits; not where it only enqueues on a GPU.
    """
    return _runner()("bireme_" + name, *arguments)
