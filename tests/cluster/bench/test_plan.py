"""Requests of a load: when they are due, how long they are, what they begin with."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.bench.arrivals import at_rate, at_rates
from cluster.bench.lengths import Lengths
from cluster.bench.load import Request
from cluster.bench.plan import Shape, make_requests
from cluster.bench.prompts import PromptKind, Prompts
from cluster.errors import BiremeError
from cluster.scaling.traces import read_trace

FIXED = Lengths.parse("10", "x"), Lengths.parse("4", "x")


@pytest.mark.parametrize(("burstiness", "variation"), [(0.25, 2.0), (1.0, 1.0), (16.0, 0.25)])
def test_gaps_have_the_mean_of_the_rate_and_the_variation_of_the_burstiness(burstiness: float, variation: float):
    due = list(itertools.islice(at_rate(50.0, burstiness, random.Random(1)), 20_000))
    gaps = [b - a for a, b in itertools.pairwise(due)]
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.1)
    assert statistics.pstdev(gaps) / mean == pytest.approx(variation, rel=0.1)


def test_rates_that_change_give_as_many_arrivals_as_they_say():
    due = list(at_rates([(0, 100), (10, 0), (20, 300)], 10, 1.0, random.Random(2)))
    counts = [sum(1 for at in due if begin <= at < begin + 10) for begin in (0, 10, 20)]
    assert counts[0] == pytest.approx(1000, rel=0.15)
    assert counts[1] == 0
    assert counts[2] == pytest.approx(3000, rel=0.15)
    assert due == sorted(due)


@pytest.mark.parametrize(
    ("text", "mean"), [("300", 300), ("uniform:100-300", 200), ("exponential:200", 200), ("lognormal:200,0.8", 200)]
)
def test_lengths_have_their_mean(text: str, mean: float):
    lengths, rng = Lengths.parse(text, "--random-input-len"), random.Random(3)
    assert statistics.fmean(lengths.draw(rng) for _ in range(20_000)) == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("text", ["exponential:200,300", "lognormal:200,0.8,300"])
def test_lengths_over_the_longest_are_cut_to_it(text: str):
    lengths, rng = Lengths.parse(text, "--random-input-len"), random.Random(3)
    drawn = [lengths.draw(rng) for _ in range(2000)]
    assert max(drawn) == 300
    assert min(drawn) < 100


@pytest.mark.parametrize(
    "text",
    ["", "0", "-3", "1.5", "uniform:9-3", "uniform:3", "lognormal:9", "normal:3", "exponential:nan", "exponential:9,0"]
    + ["exponential:9,9,9", "lognormal:9,1,9,9", "lognormal:9,1,"],
)
def test_other_lengths_are_refused_with_what_is_allowed(text: str):
    with pytest.raises(BiremeError, match=r"--random-input-len: got .*, allowed: N, uniform:LOW-HIGH"):
        Lengths.parse(text, "--random-input-len")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(0, 300), st.integers(0, 3), st.integers(0, 2**31))
def test_a_prompt_has_its_length_and_its_prefix_and_else_nothing_of_others(own: int, shared: int, name: int, seed: int):
    prompts = Prompts(PromptKind(False, seed))
    prefix = ((name, shared),) if shared else ()
    first, second = (json.loads(prompts.prompt(Request(index, own + shared, 1, None, prefix))) for index in (1, 2))
    assert len(first) == len(second) == own + shared
    assert first[:shared] == second[:shared]
    if own >= 6:
        assert first[shared : shared + 6] != second[shared : shared + 6]
    assert all(1000 <= token < 30_000 for token in first)
    assert json.loads(Prompts(PromptKind(False, seed)).prompt(Request(1, own + shared, 1, None, prefix))) == first


def test_text_has_as_many_words_as_the_server_was_found_to_count():
    prompts = Prompts(PromptKind(True, 1, tokens_a_word=1.25, tokens_around=20))
    assert len(json.loads(prompts.prompt(Request(1, 145, 1))).split()) == 100


def test_closed_and_open_loops():
    assert [r.due_s for r in make_requests(Shape(1, *FIXED, 3), 60, 1000)] == [None] * 3
    assert len(make_requests(Shape(1, *FIXED), 60, 1000)) == 1000
    due = [r.due_s or 0.0 for r in make_requests(Shape(1, *FIXED, rate=100.0), 5, 1000)]
    assert len(due) == pytest.approx(500, rel=0.2)
    assert max(due) < 5
    assert len(make_requests(Shape(1, *FIXED, 7, rate=100.0), 5, 1000)) == 7
    with pytest.raises(BiremeError, match="more than 2,000,000 requests"):
        make_requests(Shape(1, *FIXED, rate=1e9), 600, 1000)
    with pytest.raises(BiremeError, match="no request is due within --max-seconds 1"):
        make_requests(Shape(1, *FIXED, rate=1e-6), 1, 1000)


def test_prefixes_are_so_many():
    requests = make_requests(Shape(1, *FIXED, 200, prefix_tokens=32, num_prefixes=3), 60, 1000)
    assert {r.prefix for r in requests} == {((name, 32),) for name in (-1, -2, -3)}
    assert {r.prompt_tokens for r in requests} == {42}


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:46.6805900,879,0
"""
MOONCAKE = "".join(
    json.dumps(row) + "\n"
    for row in (
        {"timestamp": 1000, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3500, "input_length": 600, "output_length": 6, "hash_ids": [0, 9]},
    )
)
RATES = "second,requests_per_second,active_clients\n0,5.0,3\n600,10.0,4\n1200,0,0\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_azure(tmp_path: Path):
    trace = read_trace(written(tmp_path, AZURE))
    requests = make_requests(Shape(1, *FIXED, trace=trace, speed=2.0), 600, 1)
    assert [r.due_s for r in requests] == pytest.approx([0, 2.157, 30], abs=1e-3)
    assert [(r.prompt_tokens, r.output_tokens) for r in requests] == [(374, 44), (396, 109), (879, 1)]
    assert len(make_requests(Shape(1, *FIXED, trace=trace), 30, 1)) == 2
    assert read_trace(written(tmp_path, AZURE), start_s=4).requests[0].at == pytest.approx(0.315, abs=1e-3)


def test_mooncake_prompts_begin_alike_where_their_blocks_are(tmp_path: Path):
    trace = read_trace(written(tmp_path, MOONCAKE))
    first, second = make_requests(Shape(1, *FIXED, trace=trace, length_scale=1 / 16), 600, 1)
    assert (first.due_s, second.due_s) == (0.0, 2.5)
    assert first.prefix == ((0, 32), (1, 32), (2, 11))
    assert (first.prompt_tokens, second.prompt_tokens) == (75, 38)
    prompts = Prompts(PromptKind(False, 1))
    a, b = (json.loads(prompts.prompt(request)) for request in (first, second))
    assert (len(a), len(b)) == (75, 38)
    assert a[:32] == b[:32]
    assert a[32] != b[32]


def test_rates_alone(tmp_path: Path):
    trace = read_trace(written(tmp_path, RATES))
    shape = Shape(1, *FIXED, trace=trace, speed=10.0, share=2.0)
    due = [r.due_s or 0.0 for r in make_requests(shape, 600, 1)]
    assert sum(at < 60 for at in due) == pytest.approx(6000, rel=0.1)
    assert sum(60 <= at < 120 for at in due) == pytest.approx(12000, rel=0.1)
    assert max(due) < 120
    assert read_trace(written(tmp_path, RATES), start_s=700).rates[0] == (0.0, 10.0)


def test_a_share_of_a_recording(tmp_path: Path):
    rows = "".join(f"2023-11-16 18:{i // 60:02}:{i % 60:02}.0000000,5,5\n" for i in range(3000))
    trace = read_trace(written(tmp_path, AZURE.splitlines()[0] + "\n" + rows))
    assert len(make_requests(Shape(1, *FIXED, trace=trace, share=0.25), 1e6, 1)) == pytest.approx(750, rel=0.15)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a,b\n1,2\n", r"line 1: got 'a,b', allowed: CSV with TIMESTAMP"),
        (AZURE.replace("396", "x"), "line 3: invalid literal"),
        (MOONCAKE.replace("output_length", "length"), "line 1: there is no 'output_length'"),
        (RATES.replace("10.0", "-1"), "line 3: rates are not negative"),
        (AZURE.splitlines()[0], "nothing was recorded"),
        ("", "line 1: got ''"),
    ],
)
def test_what_is_no_recording_is_refused_by_its_line(tmp_path: Path, text: str, error: str):
    with pytest.raises(BiremeError, match=error):
        read_trace(written(tmp_path, text))
