"""transformers on torch, CPU, float32: the same prompts, as one batch. Runs in a Python that has both installed."""

from __future__ import annotations

import json
import sys
import time


def main(gguf_path: str, threads: int, rounds: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.workload import ANSWER_TOKENS, prompt

    torch.set_num_threads(threads)
    folder, name = gguf_path.rsplit("/", 1)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    count = 2_000_000
    with torch.inference_mode():
        for rows in [1, 8] * rounds:
            ids = torch.tensor([prompt(count + row) for row in range(rows)])
            count += rows
            model.generate(ids, max_new_tokens=2, min_new_tokens=2, do_sample=False)
            started = time.perf_counter()
            model.generate(ids, max_new_tokens=1, min_new_tokens=1, do_sample=False)
            first = time.perf_counter() - started
            started = time.perf_counter()
            out = model.generate(ids, max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS, do_sample=False)
            seconds = time.perf_counter() - started
            new = (out.shape[1] - ids.shape[1]) * rows
            print(json.dumps({"rows": rows, "first": first, "seconds": seconds, "tokens": new}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
