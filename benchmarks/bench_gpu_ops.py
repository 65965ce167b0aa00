"""Speed of the ops on a GPU: each kernel, and the whole step over the floor of its matmuls, each in a CUDA graph.

    python -m benchmarks.bench_gpu_ops [--models llama_8b smollm2] [--rows 1 8 64] [--context 1024] [--prompt 3500]

Peaks (device copy, large matmul) are measured in the same run. The floor F is all matmuls of a step alone in one graph;
KV is the time that the context's keys and values take at the measured copy bandwidth. Weights are random, distinct a layer.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import paddle
from paddle.device.cuda.graphs import CUDAGraph

from actors.models.decoder import largest_small_batch
from benchmarks import gpu_targets
from gpu_ops import decode_ops, sampling, state
from gpu_ops import forward as ops
from gpu_ops.share_inputs import ShareInputs, field_arrays
from gpu_ops.step_result import landing_size

BLOCK_SIZE = 64
DTYPE_BYTES = 2


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    layers: int
    hidden: int
    inner: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """[out_features, in_features] of a layer's matmuls."""
        qkv = (self.q_heads + 2 * self.kv_heads) * self.head_dim
        return {
            "qkv": (qkv, self.hidden),
            "o": (self.hidden, self.q_heads * self.head_dim),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
        }

    def step_bytes(self, rows: int, context: int) -> int:
        """Bytes of weights, and of the context's keys and values, that a decoding step cannot avoid to read."""
        weights = self.layers * sum(n * k for n, k in self.weights.values()) + self.vocab * self.hidden
        return DTYPE_BYTES * (weights + 2 * rows * context * self.layers * self.kv_heads * self.head_dim)


MODELS = {
    "llama_8b": Shape(32, 4096, 14336, 32, 8, 128, 128256),
    "smollm2": Shape(30, 576, 1536, 9, 3, 64, 49152),
}


def upload(array: np.ndarray) -> paddle.Tensor:
    """A GPU tensor; uint16 arrays become bfloat16."""
    return paddle.to_tensor(array, place=paddle.CUDAPlace(0))


class RandomBits:
    """bfloat16 values as uint16, cut from one random buffer, because drawing billions would take minutes."""

    def __init__(self) -> None:
        values = np.random.default_rng(0).normal(size=1 << 23).astype(np.float32)
        self._bits = (values.view(np.uint32) >> 16).astype(np.uint16)

    def __call__(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        count = int(np.prod(shape))
        # Powers of two change the exponent alone.
        bits = self._bits + np.int64(np.log2(scale) * 128).astype(np.uint16)
        return np.resize(bits, count).reshape(shape)


def replay_seconds(work: Callable[[], object], rounds: int) -> float:
    """Median seconds of `work`, which enqueues and does not wait: batches of it, each as long as makes the clock exact."""
    work()
    paddle.device.cuda.synchronize()
    calls, times = 1, []
    while len(times) < rounds:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        paddle.device.cuda.synchronize()
        seconds = time.perf_counter() - start
        # A synchronisation costs about 10 us.
        if seconds < 2e-3:
            calls *= 2
        else:
            times.append(seconds / calls)
    return float(np.median(times))


def graph_seconds(work: Callable[[], object], rounds: int = 7) -> float:
    """Median seconds of one replay of `work` captured in a graph. Short work repeats inside: a replay costs the host 10 us."""
    work()
    paddle.device.cuda.synchronize()
    graph = CUDAGraph()
    graph.capture_begin()
    keep = work()
    graph.capture_end()
    seconds = replay_seconds(graph.replay, rounds)
    del keep
    return seconds


def repeated_seconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Seconds of one of many calls of `work` in one graph."""
    return graph_seconds(lambda: [work() for _ in range(repeats)]) / repeats


@dataclass
class Peaks:
    """Device copy in bytes read plus written a second, matmul in FLOP a second."""

    copy: float = 0.0
    matmul: float = 0.0

    @staticmethod
    def measure(bits: RandomBits) -> Peaks:
        # Rows in their own order: a plain copy kernel, which is faster than the driver's copy.
        rows, width = 1 << 16, 1 << 13
        table, ids = upload(bits(rows, width)), upload(np.arange(rows))
        copy = graph_seconds(lambda: ops.embedding(table, ids, rows))
        size = rows * width * DTYPE_BYTES
        n = 8192
        a, b = upload(bits(n, n)), upload(bits(n, n))
        matmul = graph_seconds(lambda: ops.linear(a, b, n))
        return Peaks(2 * size / copy, 2 * n**3 / matmul)


@dataclass
class Table:
    """Lines that are printed at the end, together."""

    peaks: Peaks
    lines: list[str] = field(default_factory=list)

    def add(self, name: str, seconds: float, num_bytes: float, flops: float = 0.0) -> None:
        """A kernel with the bytes and operations it cannot avoid."""
        line = f"{name:44s} {seconds * 1e6:9.1f} us {num_bytes / seconds / 1e9:8.0f} GB/s"
        line += f" {num_bytes / seconds / self.peaks.copy:5.0%}"
        if flops:
            line += f" {flops / seconds / 1e12:7.1f} TFLOP/s {flops / seconds / self.peaks.matmul:5.0%}"
        self.lines.append(line)
        print(line, flush=True)

    def note(self, line: str) -> None:
        """Any other figure."""
        self.lines.append(line)
        print(line, flush=True)


class Model:
    """Random weights and the forward pass of a decoder, written with the ops alone."""

    def __init__(self, shape: Shape, bits: RandomBits, num_blocks: int, max_positions: int) -> None:
        self.shape = shape
        self.batch_invariant = False
        self.layers = [
            {name: upload(bits(*size, scale=2.0**-6)) for name, size in shape.weights.items()}
            for _ in range(shape.layers)
        ]
        self.head = upload(bits(shape.vocab, shape.hidden, scale=2.0**-6))
        self.norm = upload(np.full(shape.hidden, 0x3F80, np.uint16))
        cache, _ = ops.kv_cache_shape(num_blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim, on_gpu=True)
        self.caches = [(upload(bits(*cache)), upload(bits(*cache))) for _ in range(shape.layers)]
        angles = np.arange(max_positions)[:, None] / 10000 ** (np.arange(shape.head_dim // 2) * 2 / shape.head_dim)
        self.cos_sin = upload(np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))

    def linear(self, x: paddle.Tensor, layer: dict, name: str, **options) -> paddle.Tensor:
        """A layer's matmul by name."""
        options = {"batch_invariant": self.batch_invariant, **options}
        return ops.linear(x, layer[name], self.shape.weights[name][0], **options)

    def logits(self, hidden: paddle.Tensor, **options) -> paddle.Tensor:
        """float32 logits."""
        return ops.linear(hidden, self.head, self.shape.vocab, float32_output=True, **options)

    def layer_matmuls(self, inputs: dict[str, paddle.Tensor], **options) -> list[paddle.Tensor]:
        """All matmuls of the layers alone."""
        return [self.linear(inputs[name], layer, name, **options) for layer in self.layers for name in layer]

    def matmuls(self, inputs: dict[str, paddle.Tensor], last: paddle.Tensor, **options) -> list[paddle.Tensor]:
        """All matmuls of a step alone."""
        return [*self.layer_matmuls(inputs, **options), self.logits(last, **options)]

    def is_small_batch(self, rows: Rows) -> bool:
        """Whether the engine's decoder takes ``gpu_ops.decode_ops``'s matmuls."""
        shapes = self.shape.weights.values()
        layer_bytes, most_in_features = sum(DTYPE_BYTES * n * k for n, k in shapes), max(k for _, k in shapes)
        return rows.positions.shape[0] <= largest_small_batch(layer_bytes, most_in_features)

    def forward_small_batch(self, ids: paddle.Tensor, rows: Rows) -> paddle.Tensor:
        """As ``Decoder.forward_small_batch``."""
        residual = ops.embedding(self.head, ids, self.shape.vocab)
        for layer, (k_cache, v_cache) in zip(self.layers, self.caches):
            qkv = decode_ops.small_batch_linear(residual, layer["qkv"], None, self.norm, 1e-5)
            decode_ops.add_small_batch_linear(rows.attention(self, qkv, k_cache, v_cache), layer["o"], residual)
            gated = decode_ops.small_batch_linear(residual, layer["gate_up"], None, self.norm, 1e-5, swiglu=True)
            decode_ops.add_small_batch_linear(gated, layer["down"], residual)
        return ops.rms_norm(residual, self.norm, 1e-5)

    def forward(self, ids: paddle.Tensor, rows: Rows) -> paddle.Tensor:
        """Hidden states after the final norm, as ``Decoder.forward``."""
        if rows.longest == 1 and self.is_small_batch(rows):
            return self.forward_small_batch(ids, rows)
        s = self.shape
        residual = ops.embedding(self.head, ids, s.vocab)
        hidden = ops.rms_norm(residual, self.norm, 1e-5)
        for layer, (k_cache, v_cache) in zip(self.layers, self.caches):
            qkv = self.linear(hidden, layer, "qkv")
            if rows.longest > 1:
                rows.rotary(self, qkv, k_cache, v_cache)
            attended = rows.attention(self, qkv, k_cache, v_cache)
            hidden = ops.add_rms_norm(self.linear(attended, layer, "o"), residual, self.norm, 1e-5)
            gated = ops.swiglu(self.linear(hidden, layer, "gate_up"))
            hidden = ops.add_rms_norm(self.linear(gated, layer, "down"), residual, self.norm, 1e-5)
        return hidden


class Rows:
    """Rows of a step on the GPU: `counts[slot]` last positions of `lengths[slot]`."""

    def __init__(self, counts: list[int], lengths: list[int], table_width: int) -> None:
        tables = np.arange(len(lengths) * table_width, dtype=np.int32).reshape(len(lengths), table_width)
        self.longest = max(counts)
        self.tables = upload(tables)
        self.positions = upload(
            np.concatenate([np.arange(length - n, length) for n, length in zip(counts, lengths)]).astype(np.int32)
        )
        self.slots = upload(np.repeat(np.arange(len(counts)), counts).astype(np.int32))
        self.starts = upload(np.cumsum([0, *counts]).astype(np.int32))

    def rotary(self, model: Model, qkv: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> None:
        s = model.shape
        ops.rotary_kv_write(qkv, model.cos_sin, self.positions, self.slots, self.tables, k, v, s.q_heads, s.kv_heads)

    def attention(
        self, model: Model, qkv: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, **options
    ) -> paddle.Tensor:
        s = model.shape
        options = {"batch_invariant": model.batch_invariant, **options}
        if self.longest > 1:
            return ops.paged_attention(
                qkv, k, v, self.tables, self.positions, self.slots, s.q_heads, s.kv_heads, s.head_dim**-0.5,
                self.starts, self.longest, **options,
            )  # fmt: skip
        return decode_ops.decode_attention(
            qkv, model.cos_sin, self.positions, self.slots, self.tables, k, v, s.q_heads, s.kv_heads,
            s.head_dim**-0.5, **options,
        )  # fmt: skip


def running_state(rows: int, context: int, max_model_len: int, temperature: float, top_p: float) -> ShareInputs:
    """Slots that all decode at the same context length."""
    arrays = field_arrays(rows, max_model_len, BLOCK_SIZE)
    arrays["token_ids_all"][:, :context] = 7
    arrays["prompt_lens"][:] = arrays["prefill_lens"][:] = context
    arrays["seq_lens_this_time"][:] = 1
    arrays["seq_lens_decoder"][:] = context - 1
    arrays["stop_flags"][:] = False
    arrays["max_dec_len"][:] = 1 << 30
    arrays["temperature"][:], arrays["top_p"][:] = temperature, top_p
    arrays["block_tables"][:] = np.arange(arrays["block_tables"].size).reshape(arrays["block_tables"].shape)
    tensors = {name: upload(array) for name, array in arrays.items()}
    tensors["not_need_stop"] = paddle.to_tensor(arrays["not_need_stop"], place=paddle.CUDAPinnedPlace())
    return ShareInputs(**tensors, block_size=BLOCK_SIZE)


def bench_decode(
    table: Table, name: str, model: Model, bits: RandomBits, num_rows: int, context: int, width: int
) -> None:
    """Kernels and the whole step at `num_rows` rows of the same context."""
    s, tag = model.shape, f"{name} {num_rows} rows"
    layers = model.layers
    rows = Rows([1] * num_rows, [context] * num_rows, width)
    inputs = {key: upload(bits(num_rows, size[1])) for key, size in s.weights.items()}
    hidden, qkv = inputs["qkv"], upload(bits(num_rows, s.weights["qkv"][0]))
    gate_up, residual = upload(bits(num_rows, 2 * s.inner)), upload(bits(num_rows, s.hidden))
    for key, (n, k) in s.weights.items():
        work = [functools.partial(model.linear, inputs[key], layer, key) for layer in layers]
        seconds = graph_seconds(lambda work=work: [call() for call in work]) / s.layers
        table.add(f"{tag} linear {key}", seconds, n * k * DTYPE_BYTES, 2 * num_rows * n * k)
    seconds = graph_seconds(lambda: model.logits(hidden))
    table.add(f"{tag} linear head", seconds, s.vocab * s.hidden * DTYPE_BYTES, 2 * num_rows * s.vocab * s.hidden)
    row_bytes = num_rows * s.hidden * DTYPE_BYTES
    small = {
        "rms_norm": (lambda: ops.rms_norm(hidden, model.norm, 1e-5), 2 * row_bytes),
        "add_rms_norm": (lambda: ops.add_rms_norm(hidden, residual, model.norm, 1e-5), 4 * row_bytes),
        "swiglu": (lambda: ops.swiglu(gate_up), 3 * num_rows * s.inner * DTYPE_BYTES),
    }
    for key, (call, num_bytes) in small.items():
        table.add(f"{tag} {key}", repeated_seconds(call), num_bytes)
    kv_bytes = 2 * num_rows * context * s.kv_heads * s.head_dim * DTYPE_BYTES
    seconds = graph_seconds(lambda: [rows.attention(model, qkv, k, v) for k, v in model.caches]) / s.layers
    table.add(
        f"{tag} decode_attention over {context}", seconds, kv_bytes, 4 * num_rows * context * s.q_heads * s.head_dim
    )

    logits, landing = model.logits(hidden), upload(np.zeros(landing_size(num_rows, None), np.int64))
    slots = upload(np.arange(num_rows, dtype=np.int32))
    logit_bytes = num_rows * s.vocab * 4
    greedy = running_state(num_rows, context, width * BLOCK_SIZE, 0.0, 1.0)
    for key, temperature, top_p in (("greedy", 0.0, 1.0), ("temperature", 1.0, 1.0), ("top_p", 0.8, 0.9)):
        share = running_state(num_rows, context, width * BLOCK_SIZE, temperature, top_p)
        table.add(
            f"{tag} sample {key}",
            repeated_seconds(functools.partial(sampling.sample, logits, share, slots)),
            logit_bytes,
        )
    tokens = sampling.sample(logits, greedy, slots)
    table.add(f"{tag} logprobs 5", repeated_seconds(lambda: sampling.token_logprobs(logits, tokens, 5)), logit_bytes)
    table.add(f"{tag} apply_penalties", repeated_seconds(lambda: sampling.apply_penalties(logits, greedy, slots)), 0)

    packed = [upload(np.zeros(size, dtype)) for size, dtype in (
        (num_rows, np.int64), (num_rows, np.int32), (num_rows, np.int32), (num_rows + 1, np.int32),
        (num_rows, np.int32), (num_rows, np.int32), (2, np.int32),
    )]  # fmt: skip

    def prologue() -> None:
        state.pack_tokens(greedy, *packed)

    def epilogue(logits: paddle.Tensor) -> None:
        tokens = sampling.sample(logits, greedy, slots)
        state.detect_stop(greedy, tokens, slots)
        state.update_inputs(greedy, tokens, slots)
        state.pack_outputs(greedy, landing)

    def step() -> paddle.Tensor:
        prologue()
        logits = model.logits(model.forward(packed[0], rows))
        sampling.apply_penalties(logits, greedy, slots)
        epilogue(logits)
        return logits

    table.add(f"{tag} pack_tokens", repeated_seconds(prologue), 0)
    table.add(f"{tag} sample to pack_outputs", repeated_seconds(lambda: epilogue(logits)), 0)
    floor = graph_seconds(lambda: model.matmuls(inputs, hidden))
    kv = kv_bytes * s.layers / table.peaks.copy
    whole = graph_seconds(step)
    ratios = {"F": whole / floor, "F + KV": whole / (floor + kv)}
    num_bytes = s.step_bytes(num_rows, context)
    line = f"{tag} step {whole * 1e3:.3f} ms, F {floor * 1e3:.3f} ms, KV {kv * 1e3:.3f} ms: step / F {ratios['F']:.2f},"
    line += f" step / (F + KV) {ratios['F + KV']:.2f}; {num_bytes / whole / 1e9:.0f} GB/s of weights and context,"
    line += f" {num_bytes / whole / table.peaks.copy:.0%} of the copy"
    if context == 1024 and (name, num_rows) in gpu_targets.DECODE:
        of, wanted = gpu_targets.DECODE[name, num_rows]
        line += f"; step / ({of}) {gpu_targets.verdict(ratios[of], wanted)}"
    table.note(line)
    matmuls = graph_seconds(lambda: model.matmuls(inputs, hidden, batch_invariant=True))
    attention = [functools.partial(rows.attention, model, qkv, k, v) for k, v in model.caches]
    seconds = graph_seconds(lambda: [work(batch_invariant=True) for work in attention])
    table.note(
        f"{tag} with batch_invariant: matmuls {matmuls / floor:.2f} times F, attention {seconds / s.layers * 1e6:.1f} us"
    )


def bench_prefill(table: Table, name: str, model: Model, bits: RandomBits, prompt: int, width: int) -> None:
    """Attention of one prompt, and its whole forward pass outside graphs."""
    s, tag = model.shape, f"{name} prompt {prompt}"
    rows = Rows([prompt], [prompt], width)
    ids, qkv = upload(np.full(prompt, 7, np.int64)), upload(bits(prompt, s.weights["qkv"][0]))
    pairs = prompt * (prompt + 1) / 2
    flops = 4 * pairs * s.q_heads * s.head_dim
    for options in ({}, {"batch_invariant": True}):
        work = [functools.partial(rows.attention, model, qkv, k, v, **options) for k, v in model.caches[:4]]
        seconds = graph_seconds(lambda work=work: [call() for call in work]) / len(work)
        table.add(f"{tag} attention{' batch_invariant' if options else ''}", seconds, 2 * qkv.size * DTYPE_BYTES, flops)
    work = functools.partial(
        model.layer_matmuls, {key: upload(bits(prompt, size[1])) for key, size in s.weights.items()}
    )
    matmuls = replay_seconds(work, 3)
    matmul_flops = 2 * prompt * sum(n * k for n, k in s.weights.values()) * s.layers
    table.note(
        f"{tag} matmuls {matmuls * 1e3:.1f} ms, {matmul_flops / matmuls / 1e12:.0f} TFLOP/s,"
        f" {matmul_flops / matmuls / table.peaks.matmul:.0%} of the peak"
    )
    del work
    total = matmul_flops + flops * s.layers
    for invariant in (False, True):
        model.batch_invariant = invariant
        whole = replay_seconds(lambda: model.forward(ids, rows), 3)
        share = total / whole / table.peaks.matmul
        wanted = "with batch_invariant"
        if not invariant:
            wanted = gpu_targets.verdict(share, gpu_targets.PREFILL_SHARE, at_most=False)
        table.note(
            f"{tag} forward {whole * 1e3:.1f} ms: {total / whole / 1e12:.0f} TFLOP/s, {share:.0%} of the matmul peak, {wanted}"
        )
    model.batch_invariant = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=3500)
    options = parser.parse_args()
    paddle.set_device("gpu")
    bits = RandomBits()
    table = Table(Peaks.measure(bits))
    table.note(
        f"peaks: copy {table.peaks.copy / 1e12:.2f} TB/s, matmul {table.peaks.matmul / 1e12:.0f} TFLOP/s (bf16, 8192)"
    )
    for name in options.models:
        longest = max(options.context + 64, options.prompt)
        width = -(-options.context // BLOCK_SIZE) + 1
        prompt_width = -(-longest // BLOCK_SIZE)
        num_blocks = max(max(options.rows) * width, prompt_width)
        model = Model(MODELS[name], bits, num_blocks, longest + 1)
        for num_rows in options.rows:
            bench_decode(table, name, model, bits, num_rows, options.context, width)
        bench_prefill(table, name, model, bits, options.prompt, prompt_width)
        del model


if __name__ == "__main__":
    main()
