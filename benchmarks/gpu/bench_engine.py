"""Decode steps of the whole engine on a GPU, in this process: step time, device time, and their ratio.

    python -m benchmarks.gpu.bench_engine [--models smollm2 llama_8b] [--rows 1 8 64] [--context 1024] [--steps 100]
                                          [--prefill 3500 8000] [--budget 4096] [--batch-invariant]
                                          [--sampling plain penalties logprobs]

Step time is from one saved step to the next with overlapped execution, each step planned as late as the engine's loop
would; device time is between the CUDA events around a step's kernels. Bytes of a step are weights and context. Prefill is
from asking to the first token. Shares are of the copy bandwidth and the bfloat16 matmul peak of the same run. llama_8b has
Llama-3.1-8B's sizes and random weights. --device cpu tries the program where there is no GPU; figures are a GPU's.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from actors.engine.engine import Engine
from actors.engine.loading import load_engine
from actors.engine.memory_plan import GPU_MAX_NUM_BATCHED_TOKENS
from actors.engine.stats.timeline import StepTimeline
from actors.model_files.weights import num_weight_elements
from benchmarks.gpu import targets as gpu_targets
from benchmarks.gpu.memory import memory_text
from benchmarks.gpu.model_sizes import LLAMA_8B, SMOLLM2_SIZES, write_config
from cluster.config import DEFAULT_MODEL, EngineConfig
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from deployments.start.prepare import progress_bar


def make_engine(name: str, options: argparse.Namespace) -> Engine:
    """The model by name: stored or with random weights."""
    settings = {
        "device": options.device,
        "batch_invariant": options.batch_invariant,
        "max_num_seqs": max(options.slots or 0, *options.rows),
        "max_model_len": max(
            options.context + options.steps + num_prefill_steps(max(options.rows), options.context),
            max(options.prefill, default=0) + 16,
        ),
        "max_num_batched_tokens": options.budget,
        "block_size": 64,
        "enable_prefix_caching": False,
        "enforce_eager": options.eager,
    }
    if name == "llama_8b":
        settings |= {"model": str(LLAMA_8B), "load_format": "dummy"}
    elif options.dummy:
        folder = Path(tempfile.mkdtemp())
        write_config(folder, SMOLLM2_SIZES)
        settings |= {"model": str(folder), "load_format": "dummy"}
    else:
        settings["model"] = DEFAULT_MODEL
    with progress_bar(Console(), name) as progress:
        return load_engine(EngineConfig(**settings), progress=progress)


def num_prefill_steps(rows: int, context: int) -> int:
    """Steps until the last of ``rows`` prompts is computed, at most; those before it decode meanwhile."""
    return -(-rows * context // (GPU_MAX_NUM_BATCHED_TOKENS - rows)) + 1


class Ceilings(NamedTuple):
    """Device copy in bytes read plus written a second, bfloat16 matmul in FLOP a second; 0 where they are not known."""

    copy: float = 0.0
    matmul: float = 0.0


def step_bytes(engine: Engine, rows: int, context: float) -> float:
    """Weights of a decoding step, and its context's keys and values."""
    c = engine.executor.model.config
    return 2 * (num_weight_elements(c) + 2 * rows * context * c.num_layers * c.num_kv_heads * c.head_dim)


def share_of(value: float, ceiling: float) -> str:
    return f"{value / ceiling:.0%}" if ceiling else "unknown share"


# What requests ask for besides their tokens.
SAMPLING = {"plain": {}, "penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5}, "logprobs": {"logprobs": 5}}


def decode(
    engine: Engine, rows: int, options: argparse.Namespace, ceilings: Ceilings, sampling: str = "plain"
) -> tuple[float, str]:
    """Median step time in ms while exactly ``rows`` sequences decode, and that beside the device's time in words."""
    rng = np.random.default_rng(0)
    max_tokens = options.steps + num_prefill_steps(rows, options.context)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **SAMPLING[sampling])
    for index in range(rows):
        prompt = rng.integers(5, engine.info.vocab_size - 300, options.context).tolist()
        engine.add_request(EngineRequest(str(index), prompt, params))
    saved, device, before = [], [], None
    started = time.perf_counter()
    timeline: StepTimeline | None = None
    while engine.has_work():
        engine.step()
        if not options.at_once:
            time.sleep(engine.seconds_to_wait())
        step = engine.executor.last_saved
        if (
            options.trace and len(saved) == 20
        ):  # the pause that aligning the clocks takes is over when the medians begin
            timeline = timeline or engine.start_timeline(min(50, options.steps // 2))
        if step is not None and step is not before and step.num_tokens == rows:
            saved.append(step.saved_at)
            device.append(step.device_end - step.device_start)
        before = step
    total = time.perf_counter() - started
    if timeline is not None:
        Path(options.trace).write_text(json.dumps(timeline.chrome_trace()))
        print(f"{options.trace}: {timeline.summary()}")
    times = np.diff(saved)[5:-5]
    step_ms, device_ms = 1e3 * np.median(times), 1e3 * np.median(device[5:-5])
    ratio, rate = step_ms / device_ms, step_bytes(engine, rows, options.context + options.steps / 2) / device_ms * 1e3
    return step_ms, (
        f"{rows:4d} rows: step {step_ms:7.3f} ms, device {device_ms:7.3f} ms, ratio {ratio:6.3f} "
        f"({gpu_targets.verdict(ratio, gpu_targets.STEP_RATIO)}), {rate / 1e9:.0f} GB/s, {share_of(rate, ceilings.copy)} of "
        f"the copy, p99 step {1e3 * np.quantile(times, 0.99):.3f} ms, {rows / step_ms * 1e3:.0f} tok/s, all {total:.2f} s"
    )


def prefill(engine: Engine, tokens: int, ceilings: Ceilings) -> str:
    """Median time to the first token of a prompt, what the arithmetic in it (attention's too) is of the peak, and how much
    of the time the device took for each chunk: the rest is the host's."""
    rng, seconds, chunks = np.random.default_rng(tokens), [], []
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    for number in range(5):
        prompt = rng.integers(5, engine.info.vocab_size - 300, tokens).tolist()
        started, saved = time.perf_counter(), []
        engine.add_request(EngineRequest(f"prefill-{number}", prompt, params))
        while engine.has_work():
            stepped = time.perf_counter()
            engine.step()
            step = engine.executor.last_saved
            if step is not None and step.saved_at > stepped:
                saved.append((step.num_tokens, 1e3 * (step.device_end - step.device_start)))
        seconds.append(time.perf_counter() - started)
        chunks.append(saved)
    c = engine.executor.model.config
    heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    weights = c.hidden_size * (2 * heads + 2 * kv + 3 * c.intermediate_size)
    flops = c.num_layers * (2 * tokens * weights + 2 * tokens * (tokens + 1) * heads)
    median = float(np.median(seconds[1:]))
    middle = chunks[int(np.argsort(seconds[1:])[len(seconds[1:]) // 2]) + 1]
    on_device = sum(time_ms for _, time_ms in middle)
    return (
        f"prompt of {tokens} tokens: first token after {1e3 * median:.1f} ms, {flops / median / 1e12:.1f} TFLOP/s, "
        f"{share_of(flops / median, ceilings.matmul)} of the peak "
        f"({gpu_targets.verdict(flops / median / (ceilings.matmul or 1), gpu_targets.PREFILL_SHARE, at_most=False)}); "
        f"on the device {on_device:.1f} ms ({share_of(1e3 * flops / on_device, ceilings.matmul)}): "
        + ", ".join(f"{count} tokens {time_ms:.1f}" for count, time_ms in middle)
    )


def measured_ceilings() -> Ceilings:
    """Of the GPU, here and now."""
    from benchmarks.gpu.bench_ops import Peaks, RandomBits  # needs CUDA graphs, which a CPU build of Paddle lacks

    peaks = Peaks.measure(RandomBits())
    return Ceilings(peaks.copy, peaks.matmul)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["smollm2", "llama_8b"], default=["smollm2", "llama_8b"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--dummy", action="store_true", help="random weights for smollm2 too")
    parser.add_argument("--trace", help="file for a Chrome trace of some steps of the last row count")
    parser.add_argument("--prefill", nargs="*", type=int, default=[], help="prompt lengths to measure")
    parser.add_argument("--budget", type=int, help="max_num_batched_tokens")
    parser.add_argument("--at-once", action="store_true", help="plan each step as soon as the one before is launched")
    parser.add_argument("--slots", type=int, help="max_num_seqs, if more than the most rows")
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--sampling", nargs="+", choices=[*SAMPLING], default=["plain"])
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    options = parser.parse_args()
    ceilings = measured_ceilings() if options.device == "gpu" else Ceilings()
    if options.device == "gpu":
        print(f"peaks: copy {ceilings.copy / 1e12:.2f} TB/s, matmul {ceilings.matmul / 1e12:.0f} TFLOP/s", flush=True)
        gc.collect()
    for name in options.models:
        started = time.perf_counter()
        engine = make_engine(name, options)
        print(f"{name}: ready after {time.perf_counter() - started:.1f} s, {engine.info.num_blocks} blocks", flush=True)
        decode(engine, 1, options, ceilings)
        tag = f"{name}, batch_invariant," if options.batch_invariant else name
        for tokens in options.prefill:
            print(f"{tag} {prefill(engine, tokens, ceilings)}", flush=True)
        for rows in options.rows:
            plain_ms = None
            for sampling in options.sampling:
                step_ms, words = decode(engine, rows, options, ceilings, sampling)
                plain_ms = plain_ms or step_ms
                print(f"{tag} {sampling} {words}, {step_ms / plain_ms:.3f} of {options.sampling[0]}", flush=True)
        figures = engine.figures()
        print(f"{tag} {figures}", flush=True)
        if "memory" in figures:
            print(f"{tag} {memory_text(figures['memory'])}", flush=True)
        engine.close()
        del engine
        gc.collect()  # before the next one asks for free memory


if __name__ == "__main__":
    main()
