"""The folder in which commands of the pages run: files as a reader has them, as small as they may be."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.engines import TINY_CONFIG, write_quantised_model

CONFIG = """
applications:
- {name: default, route_prefix: /, import_path: "deployments.llm:build_openai_app", args: {model: tiny, device: cpu}}
"""


def write_page_files(folder: Path, serve_yaml: str, decisions: list[bytes]) -> dict[str, str]:
    """Write them; the variables of the hub's cache among them.

    Args:
        serve_yaml: what a reader's Serve config of that name holds.
        decisions: lines of the scaling policy's log.
    """
    rng = random.Random(1)
    for name in ("path/to", "models"):
        file = write_quantised_model(folder / name)
        file.rename(file.with_name("model.gguf" if name == "path/to" else "my.gguf"))
    hub, shape = (
        folder / "hub",
        {"hidden_size": 128, "head_dim": 64, "max_position_embeddings": 16384},
    )  # as a GPU's kernels need
    for repo in ("owner/name", "Qwen/Qwen2.5-0.5B-Instruct"):
        snapshot = hub / f"models--{repo.replace('/', '--')}" / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(TINY_CONFIG | shape))
        refs = snapshot.parent.parent / "refs"
        refs.mkdir()
        (refs / "main").write_text("a" * 40)
    (folder / "tiny").mkdir()
    (folder / "tiny/config.json").write_text(json.dumps(TINY_CONFIG))
    (folder / "serve.yaml").write_text(serve_yaml)
    (folder / "my.yaml").write_text(CONFIG)
    times = [
        f"2024-01-01 00:{second // 60:02d}:{second % 60:02d}.0" for second in range(0, 1260, 14)
    ]  # too few to be scaled up
    rows = [f"{at},{rng.randint(50, 500)},{rng.randint(5, 50)}" for at in times]
    (folder / "trace.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    recorded = [
        {"timestamp": 500 * number, "input_length": 400, "output_length": 20, "hash_ids": [0, number]}
        for number in range(100)
    ]
    (folder / "mooncake.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recorded))
    (folder / "events.jsonl").write_text('{"at": 600, "event": "death"}\n')
    (folder / "autoscaling_smollm2-135m-instruct.jsonl").write_bytes(b"".join(line + b"\n" for line in decisions))
    (folder / "draft.txt").write_text("Once upon a time")
    return {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
