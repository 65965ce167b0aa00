"""Host tensors over memory of others."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import numpy as np
import pytest

from actors.device.host_tensor import host_view, tensor_over, zero_pages


def test_a_tensor_over_an_array_is_its_memory_and_keeps_it():
    array = np.arange(1 << 16, dtype=np.float32).reshape(4, -1)
    tensor = tensor_over(array)
    assert tensor.place.is_cpu_place() and tensor.shape == [4, 1 << 14]
    array[3, 5] = -7
    assert host_view(tensor)[3, 5] == -7
    expected = array.copy()
    del array
    gc.collect()
    np.empty(1 << 16, np.float32).fill(9)
    assert (tensor.numpy() == expected).all()


def test_zero_pages_are_zeros_that_can_be_written():
    tensor = zero_pages([3, 1 << 12, 5])
    assert tensor.shape == [3, 1 << 12, 5] and not tensor.numpy().any()
    host_view(tensor)[2, 7, 1] = 4
    assert tensor[2, 7, 1].item() == 4
    assert zero_pages([0, 4]).shape == [0, 4]


def test_zero_pages_begin_with_small_ones():
    tensor = zero_pages([2 << 20])  # 8 MiB
    view = host_view(tensor)
    flags = {}  # by address, of each mapping that holds a part of the tensor
    begin = int(tensor.data_ptr())
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
        elif line.startswith("VmFlags:") and first < begin + view.nbytes and begin < last:
            flags[max(first, begin)] = "hg" in line.split()
    assert flags.pop(begin) is False
    assert all(flags.values()) and set(flags) <= {begin + (2 << 20)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_zero_pages_of_each_type_take_memory_at_first_touch(dtype: str):
    def resident_pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = resident_pages()
    tensor = zero_pages([256, 1 << 20], dtype)  # 256 MiB or more
    assert str(tensor.dtype).removeprefix("paddle.") == dtype and tensor.shape == [256, 1 << 20]
    assert (resident_pages() - before) * 4096 < 64 << 20
    assert not tensor[7].astype("float32").numpy().any()
