"""Speed of the forward ops on SmolLM2-135M's shapes, each against what this machine can do and against Paddle's own matmul.

    python -m benchmarks.bench_ops [--threads 1 2] [--rounds 5]

Peaks are measured in the same rounds as the ops, because clocks and neighbours change; every figure is the best round.
Weights of all layers are distinct, so that they come from memory as in a model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import paddle

from benchmarks.machine_peaks import MachinePeaks
from gpu_ops import forward as ops
from gpu_ops.kv_cache import kv_cache_shape

LAYERS, HIDDEN, INNER, VOCAB = 30, 576, 1536, 49152
Q_HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 9, 3, 64, 16
LAYER_SHAPES = {
    "qkv": (960, HIDDEN), "o": (HIDDEN, HIDDEN), "gate_up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER)
}  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 64, 512)


@dataclass
class Case:
    """One thing to time: what it reads and computes, and Paddle's way of doing the same."""

    name: str
    run: Callable[[], object]
    gbytes: float
    gflops: float
    calls: int = 1  # the time and the amounts are divided by this
    paddle_run: Callable[[], object] | None = None
    seconds: list[float] = field(default_factory=list)
    paddle_seconds: list[float] = field(default_factory=list)

    def round(self) -> None:
        """Time one round."""
        self.seconds.append(_seconds(self.run))
        if self.paddle_run:
            self.paddle_seconds.append(_seconds(self.paddle_run))

    def report(self, peak_gflops: float, peak_gbytes: float) -> str:
        """One line of the table."""
        seconds = min(self.seconds)
        gflops, gbytes = self.gflops / seconds, self.gbytes / seconds
        line = (
            f"{self.name:24s} {seconds / self.calls * 1e6:10.1f} us {gbytes:7.1f} GB/s {gbytes / peak_gbytes:6.0%}"
            f" {gflops:7.1f} GFLOP/s {gflops / peak_gflops:6.0%}"
        )
        if self.paddle_seconds:
            line += f"   paddle.matmul {min(self.paddle_seconds) / seconds:5.2f} x the time"
        return line


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def linear_cases(
    weights: dict[str, list[paddle.Tensor]], packed: dict[str, list[paddle.Tensor]], rows: int
) -> list[Case]:
    """A case for each shape over all its layers, Paddle's weights in its own layout [in, out].

    The head sees 16 rows at most, as many as sample.
    """
    cases = []
    for name, group in weights.items():
        in_features, out_features = group[0].shape
        x = paddle.randn([min(rows, 16) if name == "lm_head" else rows, in_features])

        def run(name: str = name, x: paddle.Tensor = x, out_features: int = out_features) -> None:
            for w in packed[name]:
                ops.linear(x, w, out_features)

        def paddle_run(group: list[paddle.Tensor] = group, x: paddle.Tensor = x) -> None:
            for w in group:
                paddle.matmul(x, w)

        floats = len(group) * out_features * in_features
        flops = 2e-9 * floats * x.shape[0]
        cases.append(Case(f"linear {name} T={x.shape[0]}", run, floats * 4e-9, flops, len(group), paddle_run))
    return cases


def sum_of(name: str, cases: list[Case]) -> Case:
    """The cases one after the other, from their best times."""
    total = Case(name, lambda: None, sum(case.gbytes for case in cases), sum(case.gflops for case in cases))
    total.seconds = [sum(min(case.seconds) for case in cases)]
    total.paddle_seconds = [sum(min(case.paddle_seconds) for case in cases)]
    return total


def layer_cases(rows: int) -> list[Case]:
    """Norms, activation and embedding; repeated, because one call is short."""
    repeats = 50
    x, residual, weight = paddle.randn([rows, HIDDEN]), paddle.randn([rows, HIDDEN]), paddle.ones([HIDDEN])
    gate_up = paddle.randn([rows, 2 * INNER])
    table = ops.pack_weight(paddle.randn([4096, HIDDEN]))
    ids = paddle.randint(0, 4096, [rows], dtype="int64")

    def repeated(name: str, call: Callable[[], object], floats: int, flops: int) -> Case:
        def run() -> None:
            for _ in range(repeats):
                call()

        return Case(f"{name} T={rows}", run, repeats * floats * 4e-9, repeats * flops * 1e-9, repeats)

    size = rows * HIDDEN
    return [
        repeated("rms_norm", lambda: ops.rms_norm(x, weight, 1e-5), 2 * size, 4 * size),
        repeated("add_rms_norm", lambda: ops.add_rms_norm(x, residual, weight, 1e-5), 4 * size, 5 * size),
        repeated("swiglu", lambda: ops.swiglu(gate_up), 3 * rows * INNER, 25 * rows * INNER),
        repeated("embedding", lambda: ops.embedding(table, ids, 4096), 2 * size, 0),
    ]


def attention_case(slots: int, new: int, context: int) -> list[Case]:
    """Each slot computes its last ``new`` of ``context`` positions, in as many layers as the model has."""
    blocks_each = -(-context // BLOCK_SIZE)
    k_shape, v_shape = kv_cache_shape(slots * blocks_each, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
    caches = [(paddle.randn(k_shape), paddle.randn(v_shape)) for _ in range(LAYERS if new == 1 else 2)]
    tables = paddle.randperm(slots * blocks_each, dtype="int32").reshape([slots, blocks_each])
    positions = paddle.tile(paddle.arange(context - new, context, dtype="int32"), [slots])
    slot_ids = paddle.repeat_interleave(paddle.arange(slots, dtype="int32"), new)
    qkv = paddle.randn([slots * new, (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM])
    cos_sin = paddle.randn([context, HEAD_DIM])
    heads = (Q_HEADS, KV_HEADS)

    def rotary() -> None:
        for k_cache, v_cache in caches:
            ops.rotary_kv_write(qkv, cos_sin, positions, slot_ids, tables, k_cache, v_cache, *heads)

    def attend() -> None:
        for k_cache, v_cache in caches:
            ops.paged_attention(qkv, k_cache, v_cache, tables, positions, slot_ids, *heads, 0.125)

    label = f"{slots} x {new} at {context}"
    seen = slots * sum(range(context - new + 1, context + 1))
    flops = len(caches) * seen * Q_HEADS * HEAD_DIM * 4e-9
    read = len(caches) * slots * context * KV_HEADS * HEAD_DIM * 8e-9
    return [
        Case(f"rotary   {label}", rotary, len(caches) * qkv.size * 8e-9, len(caches) * qkv.size * 4e-9, len(caches)),
        Case(f"attention {label}", attend, read, flops, len(caches)),
    ]


def main() -> None:
    """Print the table, once for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    args = parser.parse_args()
    paddle.set_device("cpu")
    peaks = MachinePeaks()
    weights = {name: [paddle.randn(shape[::-1]) for _ in range(LAYERS)] for name, shape in LAYER_SHAPES.items()}
    weights["lm_head"] = [paddle.randn([HIDDEN, VOCAB])]
    stream = ops.pack_weight(paddle.zeros([134 * 1024 * 1024 // HIDDEN, HIDDEN]))
    packed = {name: [ops.pack_weight(w.t().contiguous()) for w in group] for name, group in weights.items()}
    matmuls = {rows: linear_cases(weights, packed, rows) for rows in args.rows}
    cases = [case for group in matmuls.values() for case in group]
    for rows in (1, 8, 512):
        cases += layer_cases(rows)
    cases += [*attention_case(1, 1, 1024), *attention_case(8, 1, 1024), *attention_case(1, 512, 512)]
    for threads in args.threads:
        ops.set_num_threads(threads)
        peaks.set_num_threads(threads)
        paddle.base.core.set_num_threads(threads)
        peak_gflops = peak_gbytes = 0.0
        for case in cases:
            case.seconds.clear()
            case.paddle_seconds.clear()
        for _ in range(args.rounds):
            for case in cases:
                case.round()
            peak_gflops = max(peak_gflops, *(peaks.gflops() for _ in range(3)))
            peak_gbytes = max(peak_gbytes, *(peaks.read_gbytes(stream.data_ptr(), stream.size) for _ in range(3)))
        print(f"\n{threads} thread(s); measured peaks {peak_gflops:.0f} GFLOP/s, {peak_gbytes:.1f} GB/s read")
        for case in cases:
            print(case.report(peak_gflops, peak_gbytes))
        for rows, group in matmuls.items():
            print(sum_of(f"matmuls of a step T={rows}", group).report(peak_gflops, peak_gbytes))


if __name__ == "__main__":
    with paddle.no_grad():
        main()
