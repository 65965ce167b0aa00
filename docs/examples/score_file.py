"""Answers every line of a JSONL file with Ray Data: blocks of lines go to actors that each hold one copy of the model.

    pip install '.[cpu,data]'        (make setup has done it)
    python docs/examples/score_file.py questions.jsonl answers --actors 2

Lines have a field ``prompt``; the answers have ``text`` and ``seed`` besides. The seed of a line follows from its text, so that a
block which Ray computes again, because a machine was lost, has the same answers.
"""

from __future__ import annotations

import argparse
import zlib
from dataclasses import replace
from typing import Any

from bireme import LLM, SamplingParams

PARAMS = SamplingParams(temperature=0.2, top_p=0.9, max_tokens=64)


class Scorer:
    """One copy of the model."""

    def __init__(self, model: str, num_threads: int) -> None:
        self._llm = LLM(model, num_threads=num_threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        prompts = [str(prompt) for prompt in batch["prompt"]]
        params = [replace(PARAMS, seed=zlib.crc32(prompt.encode())) for prompt in prompts]
        outputs = self._llm.generate(prompts, params)
        return {**batch, "text": [one.text for one in outputs], "seed": [one.seed for one in outputs]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", help="JSONL file, or a folder of them")
    parser.add_argument("answers", help="folder that is written")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of an actor")
    options = parser.parse_args()
    import ray.data  # needs pyarrow and pandas, and the actor does not

    # Files are read and written beside the actors, which may hold all CPUs; of actors there are as many as find CPUs.
    beside = {"num_cpus": 0}
    ray.data.read_json(options.lines, ray_remote_args=beside).map_batches(
        Scorer,
        fn_constructor_args=(options.model, options.threads),
        batch_size=64,
        concurrency=(1, options.actors, options.actors),
        num_cpus=options.threads,
    ).write_json(options.answers, ray_remote_args=beside)


if __name__ == "__main__":
    main()
