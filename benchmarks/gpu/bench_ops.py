"""Speed of the ops on a GPU: each kernel, and the whole step over the floor of its matmuls, each in a CUDA graph.

    python -m benchmarks.gpu.bench_ops [--models llama_8b smollm2] [--rows 1 8 64] [--context 1024] [--prompt 3500]

Peaks (device copy, large matmul) are measured in the same run. The floor F is all matmuls of a step alone in one graph;
KV is the time that the context's keys and values take at the measured copy bandwidth. Weights are random, distinct a layer.
"""

from __future__ import annotations

import argparse
import functools

import numpy as np
import paddle

from benchmarks.gpu import targets as gpu_targets
from benchmarks.gpu.random_model import BLOCK_SIZE, DTYPE_BYTES, MODELS, Model, RandomBits, Rows, running_state, upload
from benchmarks.gpu.timing import Peaks, Table, graph_seconds, repeated_seconds, replay_seconds
from gpu_ops import forward as ops
from gpu_ops import sampling, state
from gpu_ops.step_result import landing_size


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
