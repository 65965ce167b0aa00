"""Who makes a mask changes nothing."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from actors.runner.mask_filling import MaskFilling, spare_threads


class Numbered:
    """Allows what its own number says, and remembers who asked."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.thread = ""

    def fill(self, mask: np.ndarray) -> None:
        if self.number < 0:
            raise RuntimeError("no mask")
        self.thread = threading.current_thread().name
        mask[:] = self.number


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("num_rows", [0, 1, 3, 8, 17, 64])
def test_each_row_has_its_own_mask_whoever_makes_it(num_threads, num_rows):
    filling = MaskFilling(num_threads)
    masks = np.zeros((70, 9), np.int32)
    matchers = {69 - slot: Numbered(slot + 1) for slot in range(num_rows)}
    for _ in range(3):
        masks[:] = 0
        filling.fill(matchers, masks)
        assert [masks[slot].tolist() for slot in matchers] == [[m.number] * 9 for m in matchers.values()]
        assert not np.delete(masks, list(matchers), axis=0).any()
    assert len({m.thread for m in matchers.values()}) <= num_threads
    if num_rows >= 8 and num_threads > 1:
        assert any(m.thread.startswith("masks") for m in matchers.values())
    filling.close()


@pytest.mark.parametrize("at", [0, 5, 15])
def test_what_goes_wrong_on_a_thread_is_raised(at):
    filling = MaskFilling(4)
    matchers = {slot: Numbered(-1 if slot == at else slot) for slot in range(16)}
    with pytest.raises(RuntimeError, match="no mask"):
        filling.fill(matchers, np.zeros((16, 2), np.int32))
    filling.close()


def test_a_processor_that_computes_the_forward_lends_no_core():
    assert spare_threads(is_gpu=False) == 1
    assert 1 <= spare_threads(is_gpu=True) <= 4
