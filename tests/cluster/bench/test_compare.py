"""Two runs side by side, of this project's files and of vLLM's."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import pytest

from cluster.bench.compare import compare, differences, read_run
from cluster.bench.load import Sample
from cluster.bench.processes import Result
from cluster.bench.summary import Targets, summarise
from cluster.errors import BiremeError

# As vLLM's benchmark writes it, with the percentile that it has by default.
VLLM = {
    "backend": "vllm", "num_prompts": 2, "duration": 2.0, "completed": 2, "total_input_tokens": 20, "total_output_tokens": 6,
    "request_throughput": 1.0, "output_throughput": 3.0, "total_token_throughput": 13.0, "mean_ttft_ms": 300.0,
    "median_ttft_ms": 300.0, "std_ttft_ms": 0.0, "p99_ttft_ms": 300.0,
}  # fmt: skip


def sample(index: int, asked: float, arrivals: list[float], tokens: int, error: str | None = None) -> Sample:
    return Sample(
        index,
        asked,
        asked,
        tokens,
        array("d", arrivals),
        arrivals[-1] + 0.5 if arrivals else asked,
        tokens,
        10,
        None,
        error,
    )


def test_figures_of_three_requests_by_hand():
    samples = [
        sample(0, 10.0, [10.25, 10.5, 10.5, 11.0], 7),
        sample(1, 10.0, [10.75], 1),
        sample(2, 11.0, [11.25], 1, "broken"),
    ]
    found = summarise(Result(samples, 10.0, 14.0, [0.5]), Targets(ttft=0.5, tpot=0.2))
    assert (found["completed"], found["failed"], found["total_output_tokens"], found["total_input_tokens"]) == (
        2,
        1,
        8,
        20,
    )
    assert (found["request_throughput"], found["output_throughput"], found["total_token_throughput"]) == (0.5, 2.0, 7.0)
    assert (found["mean_ttft_ms"], found["mean_tpot_ms"], found["mean_e2el_ms"]) == (500.0, 125.0, 1375.0)
    # Gaps of the first answer: 0.25, 0 and 0.5.
    assert (found["mean_itl_ms"], found["median_itl_ms"]) == (250.0, 250.0)
    # The second one is late, and an error keeps no target.
    assert found["slo_share"] == pytest.approx(1 / 3)


def test_changes_say_which_is_better():
    rows = {row.name: row for row in compare(VLLM, {**VLLM, "output_throughput": 6.0, "median_ttft_ms": 450.0})}
    assert (rows["output tokens/s"].change, rows["output tokens/s"].is_better) == (1.0, True)
    assert (rows["TTFT p50 ms"].change, rows["TTFT p50 ms"].is_better) == (0.5, False)
    assert rows["seconds"].is_better is None
    assert "TPOT p50 ms" not in rows


def test_what_was_asked_for_differently_is_told():
    assert differences({"config": {"a": 1, "b": 2}}, {"config": {"a": 1, "b": 3, "c": 4}}) == [
        ("b", 2, 3),
        ("c", None, 4),
    ]


def test_files_of_both_are_read_and_others_refused(tmp_path: Path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(VLLM))
    assert read_run(path) == VLLM
    for text, error in (("{", "is no JSON"), ("[]", "is no run of bireme bench"), ('{"completed": 2}', "is no run")):
        path.write_text(text)
        with pytest.raises(BiremeError, match=error):
            read_run(path)
