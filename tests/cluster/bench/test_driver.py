"""A load against a small server: what is sent, what counts, and what does not."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from typing import Any

import pytest

from cluster.bench.connection import Target
from cluster.bench.driver import Driver, Seen
from cluster.bench.lengths import Lengths
from cluster.bench.load import Load
from cluster.bench.plan import Shape, make_requests
from cluster.bench.processes import Result, together
from cluster.bench.prompts import PromptKind
from cluster.bench.summary import Targets, summarise
from tests.cluster.bench.small_server import DONE, serving, text, tokens, usage

FIELDS = '"model":"small","stream":true'


def load(url: str, shape: dict[str, Any], **options: Any) -> Load:
    lengths = Lengths.parse("20", "x"), Lengths.parse("5", "x")
    seconds = options.pop("max_seconds", 30.0)
    requests = make_requests(Shape(1, *lengths, **shape), seconds, 3)
    options = {"streams": None, **options}
    return Load(
        Target(url, "/v1/completions"), FIELDS, False, PromptKind(False, 1), requests, max_seconds=seconds, **options
    )


def run(what: Load) -> Seen:
    async def work() -> Seen:
        driver = Driver(what)
        await driver.warm_up()
        return await driver.run(time.perf_counter())

    return asyncio.run(work())


NO_TARGETS = Targets()


def figures(seen: Seen, targets: Targets = NO_TARGETS) -> dict[str, Any]:
    return summarise(Result(seen.samples, seen.begin, seen.end, [0.0]), targets)


def test_a_process_without_a_stream_has_used_next_to_nothing():
    with serving(lambda body: [0.05, text(), usage(1), DONE]) as server:
        whole = load(server.url, {"count": 4}, streams=1)
        seen = [run(whole.share(number, 2)) for number in range(2)]
    assert [len(part.samples) for part in seen] == [2, 0]
    busy, without = together(seen).cpu_shares
    assert 0.0 < busy < 1.0
    assert 0.0 <= without < 0.1
    assert together([seen[1]]).cpu_shares == [0.0], "a run of no time at all"


def test_a_closed_loop_has_its_streams_and_its_times():
    with serving(lambda body: [0.05, text(), 0.1, text(" b"), usage(11), DONE]) as server:
        seen = run(load(server.url, {"count": 8}, streams=4))
    assert server.most == 4
    assert [len(body["prompt"]) for body in server.bodies] == [20] * 8
    assert {body["max_tokens"] for body in server.bodies} == {5}
    found = figures(seen, Targets(ttft=0.04))
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (8, 0, 88)
    # Never sooner than the server says them; later only as far as this machine is busy.
    assert 49 <= found["median_ttft_ms"] < 250
    assert 9 <= found["median_tpot_ms"] < 50
    assert 148 <= found["median_e2el_ms"] < 750
    assert 0.3 <= found["duration"] < 1.5
    assert found["slo_share"] == 0
    assert figures(seen, Targets(ttft=10, tpot=10))["slo_share"] == 1


def test_a_client_that_leaves_counts_neither_as_an_answer_nor_as_an_error():
    with serving(lambda body: [text(), 0.01, text(" b"), 0.01, text(" c"), 5.0, usage(3), DONE]) as server:
        whole = load(server.url, {"count": 4}, streams=2)
        seen = run(replace(whole, requests=tuple(replace(request, leaves_after=2) for request in whole.requests)))
    found = figures(seen)
    assert (found["completed"], found["failed"], found["unfinished"]) == (0, 0, 4)
    assert [len(sample.arrivals) for sample in seen.samples] == [2] * 4
    assert found["duration"] < 4, "nobody waited for the rest"


def test_an_open_loop_asks_when_it_is_due_whatever_is_under_way():
    with serving(lambda body: [0.3, *tokens(body)]) as server:
        seen = run(load(server.url, {"count": 20, "rate": 100.0, "burstiness": 100.0}))
    assert server.most > 10
    late = sorted(sample.asked - sample.due for sample in seen.samples)
    assert late[0] >= 0
    assert late[len(late) // 2] < 0.25
    assert figures(seen)["completed"] == 20


def test_an_open_loop_keeps_below_its_limit_and_says_how_late_that_makes_it():
    with serving(lambda body: [0.05, *tokens(body)]) as server:
        seen = run(load(server.url, {"count": 10, "rate": 1000.0}, streams=2))
    assert server.most == 2
    latest = max(sample.asked - sample.due for sample in seen.samples)
    assert latest > 0.15
    assert figures(seen)["median_ttft_ms"] < 1e3 * latest, "waiting for a stream is no waiting for a token"


def test_breaks_and_refusals_are_errors_and_no_samples():
    answers = iter([[text(), None], [text(), usage(2), DONE], [text(), usage(2)], [text(), DONE]])
    with serving(lambda body: next(answers)) as server:
        found = figures(run(load(server.url, {"count": 4}, streams=1)))
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (1, 3, 2)
    assert any("connection broke" in error for error in found["errors"])
    assert sum(found["errors"].values()) == 3


def test_nobody_there_is_an_error_of_each_request():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = figures(run(load(f"http://127.0.0.1:{free.getsockname()[1]}", {"count": 3}, streams=1)))
    assert (found["completed"], found["failed"]) == (0, 3)
    assert found["median_ttft_ms"] is None


def test_what_is_under_way_at_the_end_counts_neither_way():
    with serving(lambda body: [text(), 0.1, usage(1), DONE] if len(server.bodies) < 3 else [text(), 20]) as server:
        begun = time.monotonic()
        seen = run(load(server.url, {}, streams=1, max_seconds=1.0, repeats=True))
    assert time.monotonic() - begun < 5
    found = figures(seen)
    assert (found["completed"], found["failed"], found["unfinished"]) == (2, 0, 1)
    assert found["duration"] == pytest.approx(1.0, abs=0.5)


def test_a_load_that_repeats_asks_nothing_twice():
    with serving(tokens) as server:
        run(load(server.url, {}, streams=2, max_seconds=0.5, repeats=True))
    prompts = [tuple(body["prompt"]) for body in server.bodies]
    assert len(prompts) > 6
    assert len(set(prompts)) == len(prompts)


def test_warm_up_requests_count_nowhere_and_share_no_prompt():
    with serving(tokens) as server:
        seen = run(load(server.url, {"count": 3}, streams=2, num_warmups=4))
    assert len(server.bodies) == 7
    assert len({tuple(body["prompt"]) for body in server.bodies}) == 7
    assert len(seen.samples) == 3


def test_shares_of_processes_are_the_whole():
    whole = load("http://127.0.0.1:1", {"count": 10}, streams=7, num_warmups=3)
    shares = [whole.share(number, 3) for number in range(3)]
    assert sorted(r.index for share in shares for r in share.requests) == list(range(10))
    assert sorted(share.streams or 0 for share in shares) == [2, 2, 3]
    assert sum(share.num_warmups for share in shares) == 3
