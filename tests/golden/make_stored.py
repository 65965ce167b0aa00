"""Writes smollm2_stored.json: greedy tokens of the default model from its stored weights, for prompts of smollm2_greedy.json.

No other program computes these bits. They are here so that no change and no processor gives others unnoticed.

    python -m tests.golden.make_stored
"""

from __future__ import annotations

import json
from pathlib import Path

from actors.engine.loading import load_engine
from cluster.config import EngineConfig
from tests.engines import request, tokens_of

HERE = Path(__file__).parent


def main() -> None:
    cases = json.loads((HERE / "smollm2_greedy.json").read_text())["cases"]
    prompts = [case["prompt_token_ids"] for case in cases]
    engine = load_engine(EngineConfig(max_num_seqs=1, weight_format="stored", enable_overlap_schedule=False))
    found = [tokens_of(engine.generate([request("a", ids, max_tokens=48)])["a"]) for ids in prompts]
    engine.close()
    lines = ",\n".join(json.dumps(list(case)) for case in zip(prompts, found, strict=True))
    (HERE / "smollm2_stored.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
