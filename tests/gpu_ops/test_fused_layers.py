"""The op of all blocks gives the bits of the single ops it stands for, and agrees with its twin."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from actors.device.host_tensor import zero_pages
from gpu_ops import forward as ops
from gpu_ops.fused_layers import FusedLayer, fused_layers
from gpu_ops.kv_cache import CPU_TYPES, kv_cache_shape
from gpu_ops.twins.forward import rms_norm as rms_norm_twin
from gpu_ops.twins.fused_layer import fused_layer as twin

Q_HEADS, KV_HEADS, DIM, HIDDEN, INNER, EPS, SCALE = 6, 2, 16, 70, 50, 1e-5, 0.25
QKV = (Q_HEADS + 2 * KV_HEADS) * DIM


def random_tensor(rng: np.random.Generator, *shape: int) -> paddle.Tensor:
    return paddle.to_tensor(rng.standard_normal(shape, dtype=np.float32), place=paddle.CPUPlace())


def int_tensor(values) -> paddle.Tensor:
    return paddle.to_tensor(np.asarray(values, np.int32), place=paddle.CPUPlace())


@pytest.fixture
def block():
    """Arguments of the op for 23 rows: 20 of slot 1, two of slot 0, one padding."""
    rng = np.random.default_rng(0)
    k_shape, v_shape = kv_cache_shape(4, 16, KV_HEADS, DIM)
    return {
        "residual": random_tensor(rng, 23, HIDDEN),
        "input_norm": random_tensor(rng, HIDDEN),
        "qkv": ops.pack_weight(random_tensor(rng, QKV, HIDDEN)),
        "o": ops.pack_weight(random_tensor(rng, HIDDEN, Q_HEADS * DIM)),
        "gate_up": ops.pack_weight(random_tensor(rng, 2 * INNER, HIDDEN)),
        "down": ops.pack_weight(random_tensor(rng, HIDDEN, INNER)),
        "post_attention_norm": random_tensor(rng, HIDDEN),
        "next_norm": random_tensor(rng, HIDDEN),
        "cos_sin": random_tensor(rng, 32, DIM),
        "positions": int_tensor([*range(20), 0, 1, 0]),
        "batch_id_per_token": int_tensor([1] * 20 + [0] * 2 + [-1]),
        "block_tables": int_tensor([[3, -1], [0, 2]]),
        "k_cache": paddle.zeros(k_shape),
        "v_cache": paddle.zeros(v_shape),
        "q_heads": Q_HEADS,
        "kv_heads": KV_HEADS,
        "eps": EPS,
        "scale": SCALE,
    }


def in_order(a: dict, *more: dict, layers_done: paddle.Tensor | None = None) -> paddle.Tensor:
    """The op over the block ``a`` and blocks that differ in something."""
    blocks = [a, *(a | other for other in more)]
    layers = [FusedLayer(**{name: b[name] for name in FusedLayer._fields if name in b}) for b in blocks]
    common = ("cos_sin", "positions", "batch_id_per_token", "block_tables", "q_heads", "kv_heads", "eps", "scale")
    caches = [(b["k_cache"], b["v_cache"]) for b in blocks]
    return fused_layers(
        a["residual"], a["input_norm"], layers, caches, **{name: a[name] for name in common}, layers_done=layers_done
    )


def single_ops(a: dict, hidden: paddle.Tensor | None = None) -> paddle.Tensor:
    """The block on what the one before it returned; the first norms its input."""
    if hidden is None:
        hidden = ops.rms_norm(a["residual"], a["input_norm"], EPS)
    qkv = ops.linear(hidden, a["qkv"], QKV, a.get("qkv_bias"))
    if "q_norm" in a:
        ops.qk_norm(qkv, a["q_norm"], a["k_norm"], Q_HEADS, KV_HEADS, EPS)
    place = (a["positions"], a["batch_id_per_token"], a["block_tables"])
    ops.rotary_kv_write(qkv, a["cos_sin"], *place, a["k_cache"], a["v_cache"], Q_HEADS, KV_HEADS)
    attended = ops.paged_attention(
        qkv, a["k_cache"], a["v_cache"], a["block_tables"], *place[:2], Q_HEADS, KV_HEADS, SCALE
    )
    attended = ops.linear(attended, a["o"], HIDDEN, a.get("o_bias"))
    hidden = ops.add_rms_norm(attended, a["residual"], a["post_attention_norm"], EPS)
    activated = ops.swiglu(ops.linear(hidden, a["gate_up"], 2 * INNER, a.get("gate_up_bias")))
    down = ops.linear(activated, a["down"], HIDDEN, a.get("down_bias"))
    return ops.add_rms_norm(down, a["residual"], a["next_norm"], EPS)


@pytest.mark.parametrize("dtype", CPU_TYPES)
@pytest.mark.parametrize("extras", [False, True])
def test_block_equals_the_single_ops(block, extras, dtype):
    shapes = kv_cache_shape(4, 16, KV_HEADS, DIM, dtype)
    block |= {name: zero_pages(shape, dtype) for name, shape in zip(("k_cache", "v_cache"), shapes, strict=True)}
    if extras:
        rng = np.random.default_rng(1)
        sizes = {"qkv_bias": QKV, "o_bias": HIDDEN, "gate_up_bias": 2 * INNER, "down_bias": HIDDEN}
        block |= {name: random_tensor(rng, size) for name, size in (sizes | {"q_norm": DIM, "k_norm": DIM}).items()}
    written = ("residual", "k_cache", "v_cache")
    other = block | {name: block[name].clone() for name in written}
    arrays = {
        name: value.numpy().copy() if isinstance(value, paddle.Tensor) else value for name, value in block.items()
    }
    arrays["hidden"] = rms_norm_twin(arrays["residual"], arrays.pop("input_norm"), EPS)
    expected = single_ops(other)
    actual = in_order(block)
    # A key or value that lies between two stored numbers may fall to either side.
    np.testing.assert_allclose(actual.numpy(), twin(**arrays), rtol=0, atol=1e-4 if dtype == "float32" else 0.05)
    np.testing.assert_array_equal(actual.numpy().view(np.uint32), expected.numpy().view(np.uint32))
    for name in written:
        np.testing.assert_array_equal(block[name].numpy(), other[name].numpy())


@pytest.mark.parametrize(
    "name",
    ["residual", "input_norm", "qkv", "o", "gate_up", "down", "post_attention_norm", "next_norm", "cos_sin", "v_cache"],
)
def test_wrong_shape_raises_with_the_name_of_the_argument(block, name):
    block[name] = paddle.zeros([3, 5])
    with pytest.raises((RuntimeError, ValueError, OSError), match=name):
        in_order(block)


def test_layers_are_counted_as_they_are_computed(block):
    caches = ("k_cache", "v_cache")
    others = [{name: paddle.zeros_like(block[name]) for name in caches} for _ in range(2)]
    plain = in_order({**block, "residual": block["residual"].clone()}, *others)
    done = paddle.to_tensor([5], dtype="int64", place=paddle.CPUPlace())
    counted = in_order(block, *others, layers_done=done)
    assert done.numpy().tolist() == [8]
    np.testing.assert_array_equal(plain.numpy().view(np.uint32), counted.numpy().view(np.uint32))
    with pytest.raises((RuntimeError, ValueError, OSError), match="layers_done"):
        in_order(block, layers_done=int_tensor([0]))


def test_missing_block_and_lonely_norm_are_refused(block):
    with pytest.raises((RuntimeError, ValueError, OSError), match="k_norm"):
        in_order(block | {"q_norm": paddle.ones([DIM])})
    with pytest.raises((RuntimeError, ValueError, OSError), match="block_tables"):
        in_order(block | {"block_tables": int_tensor([[3, -1], [0, -1]])})
    with pytest.raises(ValueError, match="residual"):
        in_order(block | {"residual": paddle.zeros([23, 2 * HIDDEN])[:, ::2]})


def test_blocks_follow_each_other(block):
    rng = np.random.default_rng(2)
    other = {"o": ops.pack_weight(random_tensor(rng, HIDDEN, Q_HEADS * DIM)), "next_norm": random_tensor(rng, HIDDEN)}
    other |= {name: paddle.zeros_like(block[name]) for name in ("k_cache", "v_cache")}
    written = ("residual", "k_cache", "v_cache")
    twins = [copied | {name: copied[name].clone() for name in written} for copied in (block, block | other)]
    hidden, twins[1]["residual"] = single_ops(twins[0]), twins[0]["residual"]
    expected = single_ops(twins[1], hidden)
    np.testing.assert_array_equal(in_order(block, other).numpy().view(np.uint32), expected.numpy().view(np.uint32))
    np.testing.assert_array_equal(block["residual"].numpy(), twins[0]["residual"].numpy())
    for name in ("k_cache", "v_cache"):
        np.testing.assert_array_equal(block[name].numpy(), twins[0][name].numpy())
        np.testing.assert_array_equal(other[name].numpy(), twins[1][name].numpy())


def test_what_only_some_layers_have_is_refused(block):
    with pytest.raises(ValueError, match="o_bias"):
        in_order(block, {"o_bias": paddle.ones([HIDDEN])})
    with pytest.raises(ValueError, match="o_bias"):
        in_order(block | {"o_bias": paddle.ones([HIDDEN])}, {"o_bias": None})
