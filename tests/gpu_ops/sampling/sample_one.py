"""One row through the `sample` op."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gpu_ops.sampling import sample
from tests.gpu_ops.slots.random_slots import empty_state, on_device, put_request, tensor


def sample_one(logits: ArrayLike, seed: int = 0, position: int = 1, mask: np.ndarray | None = None, **params) -> int:
    """The token that the op samples from one row, under an int32 [1, 1 + words] mask if there is one."""
    state = empty_state(slots=1, max_model_len=64)
    put_request(state, 0, prompt=[0] * position, seeds=seed, **{"temperature": 1.0, **params})
    row = tensor(np.asarray(logits, np.float32)[None], "float32")
    masks = None if mask is None else tensor(mask, "int32")
    return int(sample(row, on_device(state), tensor([0], "int32"), masks)[0])
