"""A few launches of one attention kernel, and nothing to time: for a profiler.

    ncu --clock-control none --set full -k regex:decode_kernel --launch-skip 4 -c 1 \\
        python -m benchmarks.gpu.run_attention --model smollm2 --rows 64
    ncu ... -k regex:chunk_wgmma_kernel python -m benchmarks.gpu.run_attention --model llama_8b --prompt 2048
"""

from __future__ import annotations

import argparse
import dataclasses

import paddle

from benchmarks.gpu.random_model import BLOCK_SIZE, MODELS, Model, RandomBits, Rows, upload

# Caches that take turns, so that one launch does not find the last one's keys in the GPU's own cache.
_LAYERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--rows", type=int, default=64, help="sequences that decode")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument(
        "--prompt", type=int, default=0, help="tokens of a chunk after --context others, instead of --rows"
    )
    parser.add_argument("--launches", type=int, default=8)
    options = parser.parse_args()
    paddle.set_device("gpu")
    bits = RandomBits()
    length = options.context + options.prompt
    counts = [options.prompt] if options.prompt else [1] * options.rows
    width = -(-length // BLOCK_SIZE)
    # The kernel takes no weights: small ones will do.
    shape = dataclasses.replace(MODELS[options.model], layers=_LAYERS, hidden=64, inner=64, vocab=64)
    model = Model(shape, bits, len(counts) * width, length + 1)
    rows = Rows(counts, [length] * len(counts), width)
    qkv = upload(bits(sum(counts), shape.weights["qkv"][0]))
    for launch in range(options.launches):
        rows.attention(model, qkv, *model.caches[launch % _LAYERS])
    paddle.device.cuda.synchronize()
    print(f"{options.model}: {options.launches} launches")


if __name__ == "__main__":
    main()
