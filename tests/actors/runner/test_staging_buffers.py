"""Inputs of a step's own sizes keep their memory from step to step, and never share it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.device.cpu import CpuDevice
from actors.device.host_tensor import fill_with_poison, host_view
from actors.runner.staging_buffers import StagingBuffers

SIZES = st.sampled_from([(1, 3), (2, 3), (4, 3), (200, 300), (1, 64), (3, 64)])


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("ab"), SIZES), unique_by=lambda one: one[0], max_size=2), max_size=30)
)
def test_a_step_reads_what_it_was_given_however_sizes_follow_one_another(steps):
    staging, number = StagingBuffers(CpuDevice()), 0
    for step in steps:
        staged = []
        for name, shape in step:
            number += 1
            staged.append((staging.stage(name, np.full(shape, number, np.int64)), number, shape))
        for tensor, value, shape in staged:
            assert tuple(tensor.shape) == shape
            assert (host_view(tensor) == value).all()
        held = list(staging.release())
        assert len(held) == len(step)
        for array in held:
            fill_with_poison(array)


def test_memory_is_kept_for_sizes_that_are_small_up_to_a_limit():
    staging = StagingBuffers(CpuDevice())

    def address(rows: int, name: str = "a") -> int:
        tensor = staging.stage(name, np.zeros((rows, 1024), np.int64))
        list(staging.release())
        return tensor.data_ptr()

    first = address(1)
    assert address(1) == first
    assert address(1, "b") != first
    for rows in range(2, 90):
        address(1 + rows % 32, str(rows))
        address(1)  # used last, so the last to go
    assert sum(buffer.array.nbytes for buffer in staging._kept.values()) == staging._kept_bytes <= 8 << 20
    assert address(1) == first and ("b", (1, 1024)) not in staging._kept
    address(33)
    assert ("a", (33, 1024)) not in staging._kept
