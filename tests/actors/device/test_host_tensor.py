"""Host tensors over memory of others."""

from __future__ import annotations

import gc

import numpy as np

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
