"""The library's page and notebook run from top to bottom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import pytest

from tests.test_docs import PYTHON_BLOCK, ROOT


def page() -> str:
    return "\n".join(code for _, code in PYTHON_BLOCK.findall((ROOT / "docs/library.md").read_text(encoding="utf-8")))


def notebook() -> str:
    cells = json.loads((ROOT / "docs/library.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


# What an actor of the example does with two batches of the same lines, without the columns of Arrow around them.
SCORER = """
import importlib.util
from dataclasses import replace
import numpy as np
spec = importlib.util.spec_from_file_location("score_file", "docs/examples/score_file.py")
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
example.PARAMS = replace(example.PARAMS, max_tokens=8)
scorer = example.Scorer("smollm2-135m-instruct", 1)
prompts = np.array(["Number 1 is", "Number 2 is"], dtype=object)
one, other = scorer({"prompt": prompts}), scorer({"prompt": prompts[::-1]})
assert all(one["text"]) and one["seed"] == other["seed"][::-1] != other["seed"]
assert one["text"] == other["text"][::-1] and list(one["prompt"]) == list(prompts)
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [page, notebook], ids=lambda program: program.__name__)
def test_every_block_runs(program, smollm2_source):
    # With a random seed the model may go on until its context is full, which takes minutes: here 478
    # tokens fit behind the page's prompt.
    code = program().replace("LLM()", "LLM(max_model_len=512)").replace("max_tokens=2000", "max_tokens=478")
    code += SCORER if program is page else ""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 3


@pytest.mark.slow
def test_a_file_is_scored_by_two_actors(tmp_path: Path, smollm2_source):
    """Also where the actors hold every CPU that there is; a line has the same answer in whichever block it lies."""
    lines, answers = tmp_path / "questions.jsonl", tmp_path / "answers"
    prompts = [f"Number {i} is" for i in range(5)]
    lines.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in 2 * prompts))
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    script = [sys.executable, str(ROOT / "docs/examples/score_file.py"), str(lines), str(answers)]
    script += ["--actors", "2", "--threads", threads]
    subprocess.run(script, cwd=ROOT, check=True, capture_output=True, timeout=240)
    found = [json.loads(line) for path in answers.glob("*.json") for line in path.read_text().splitlines()]
    assert sorted(answer["prompt"] for answer in found) == sorted(2 * prompts)
    texts = {(answer["prompt"], answer["text"], answer["seed"]) for answer in found}
    assert {prompt: seed for prompt, _, seed in texts} == {prompt: crc32(prompt.encode()) for prompt in prompts}
    assert len(texts) == len(prompts)
    assert all(text for _, text, _ in texts)
