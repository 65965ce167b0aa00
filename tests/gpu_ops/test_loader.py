"""``run_op`` calls ops beside Paddle's own way, with the same results and errors that name what is wrong."""

from __future__ import annotations

import threading
import time

import numpy as np
import paddle
import pytest

from gpu_ops import build, loader
from gpu_ops.host_flag import event_record, event_wait
from gpu_ops.slots.share_inputs import allocate_share_inputs
from gpu_ops.slots.state_op import run_state_op

ROWS, HIDDEN = 3, 64

pytestmark = pytest.mark.skipif(not build.calls_ops_itself(), reason="this Paddle calls the ops itself")


def tensor(values: np.ndarray) -> paddle.Tensor:
    return paddle.to_tensor(values, place=paddle.CPUPlace())


def norm_inputs() -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    rng = np.random.default_rng(0)
    x, residual = (tensor(rng.standard_normal((ROWS, HIDDEN), dtype=np.float32)) for _ in range(2))
    return x, residual, tensor(rng.standard_normal(HIDDEN, dtype=np.float32))


def of_paddle(name: str, *arguments) -> list[paddle.Tensor]:
    loader._runner()
    return paddle._C_ops._run_custom_op("bireme_" + name, *arguments)


def test_outputs_are_those_of_paddles_way():
    x, residual, weight = norm_inputs()
    other = residual.clone()
    out, residual_out = loader.run_op("add_rms_norm", x, residual, weight, 1e-5)
    expected = of_paddle("add_rms_norm", x, other, weight, 1e-5)
    assert residual_out is residual
    np.testing.assert_array_equal(out.numpy(), expected[0].numpy())
    np.testing.assert_array_equal(residual.numpy(), other.numpy())


def test_a_view_with_gaps_is_read_as_what_it_shows():
    x, _, weight = norm_inputs()
    view = tensor(np.ascontiguousarray(x.numpy().T)).t()
    assert not view.is_contiguous()
    np.testing.assert_array_equal(
        loader.run_op("rms_norm", view, weight, 1e-5)[0].numpy(), loader.run_op("rms_norm", x, weight, 1e-5)[0].numpy()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x, weight: (x, weight), "got 2 arguments, needs 3"),
        (lambda x, weight: (x, 3, 1e-5), "weight: is a int, needs a tensor"),
        (lambda x, weight: (x, None, 1e-5), "weight: is a NoneType, needs a tensor"),
        (lambda x, weight: (x, weight, "small"), "must be real number"),
        (lambda x, weight: (x.astype("int32"), weight, 1e-5), "x: has dtype int32, needs float32"),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    x, _, weight = norm_inputs()
    with pytest.raises((TypeError, RuntimeError), match=message):
        loader.run_op("rms_norm", *arguments(x, weight))


def test_an_unknown_op_is_refused():
    with pytest.raises(RuntimeError, match="bireme_nothing: is no op of this library"):
        loader.run_op("nothing")


def test_a_waiting_op_does_not_hold_the_interpreter_lock():
    cell = tensor(np.zeros(1, np.int64))
    waiter = threading.Thread(target=event_wait, args=(cell, 1), daemon=True)
    waiter.start()
    time.sleep(0.2)  # it waits by now; were the lock held, this thread would not go on
    event_record(cell, 1)
    waiter.join(10)
    assert not waiter.is_alive()


def test_an_input_without_elements_takes_the_same_way():
    state = allocate_share_inputs(2, 64, 16)
    none = tensor(np.zeros((0, 3), np.int32))
    slots = tensor(np.zeros(2, np.int32))
    fields = run_state_op("apply_step", state, slots, slots, none, 16)
    assert fields[0] is state.seq_lens_this_time  # Paddle's own way makes another object of it
