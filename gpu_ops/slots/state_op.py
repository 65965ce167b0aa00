"""Call an op whose first arguments are slot fields: which, and in what order, is declared in ``gpu_ops.slots.slot_fields``."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import paddle

from gpu_ops.loader import run_op
from gpu_ops.slots.share_inputs import ShareInputs
from gpu_ops.slots.slot_fields import STATE_OPS, StateOp


def _getter(op: StateOp) -> Callable[[ShareInputs], tuple[paddle.Tensor, ...]]:
    names = [entry.name for entry in op.fields]
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda state: (get(state),)


_FIELDS = {op.name: _getter(op) for op in STATE_OPS}


def run_state_op(name: str, state: ShareInputs, *arguments: Any) -> list[paddle.Tensor]:
    """Run the state op ``name`` with its fields of ``state``, then with ``arguments``: tensors, then attributes."""
    return run_op(name, *_FIELDS[name](state), *arguments)
