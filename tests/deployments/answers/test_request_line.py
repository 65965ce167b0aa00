"""A line a request that is over: its figures, its two forms, and that a storm makes no more than so many."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from cluster.api_errors import bad_request
from cluster.journal import JournalEntry
from cluster.sampling_params import SamplingParams
from deployments.answers import request_line
from deployments.answers.choice import Choice
from deployments.answers.request_line import RequestLines, figures
from deployments.metrics.ingress_metrics import IngressMetrics, SequenceTimes
from tests.test_docs import shown_block


class Output:
    def __init__(self, num_tokens: int) -> None:
        self.token_ids = [0] * num_tokens
        self.finish_reason = "length"


def choice(index: int = 0, prompt: list[int] | None = None, num_tokens: int = 5) -> Choice:
    now = time.monotonic()
    times = SequenceTimes(IngressMetrics(), now - 3.0)
    times.first, times.last = now - 2.0, now
    times.finished("length", num_tokens)
    entry = JournalEntry("r", [1, 2, 3] if prompt is None else prompt, SamplingParams())
    entry.engine_id, entry.marks["scheduled"] = "engine-a", time.time() - 2.5
    return Choice(index, entry, Output(num_tokens), times)  # type: ignore[arg-type]


def test_figures_are_of_all_sequences_of_a_request():
    shared = [1, 2, 3]
    found = figures([choice(0, shared), choice(1, shared)])
    assert abs(found.pop("queue_ms") - 500) < 50
    assert abs(found.pop("first_token_ms") - 1000) < 50
    assert abs(found.pop("tokens_per_s") - 4) < 0.2, "eight tokens after the first ones, in two seconds"
    assert found == {"prompt_tokens": 3, "tokens": 10, "finish": "length", "engine": "engine-a", "attempts": 1}


def test_a_request_that_no_engine_had_says_so():
    left = choice(num_tokens=0)
    left.times = SequenceTimes(IngressMetrics(), time.monotonic())
    left.times.given_up(failed=False)
    left.entry.engine_id = ""
    left.entry.marks.clear()
    found = figures([left])
    assert [found[name] for name in ("queue_ms", "first_token_ms", "tokens_per_s", "engine")] == [None, None, None, ""]
    assert found["finish"] == "abort"


def written(style: str, times: int = 1, name: str = "x=1 y") -> list[str]:
    lines: list[str] = []

    async def run() -> None:
        writer = RequestLines("tiny", style, lines.append)  # type: ignore[arg-type]
        for _ in range(times):
            writer.when_over("cmpl-1", name, [choice()])
        await asyncio.sleep(2 * request_line._LATE_S)

    asyncio.run(run())
    return lines


def test_a_line_is_text_or_json_or_none():
    (text,) = written("text")
    assert text.startswith("event=request id=cmpl-1 x_request_id=x%3D1%20y model=tiny queue_ms=")
    assert text.endswith(" tokens=5 tokens_per_s=2.0 finish=length engine=engine-a attempts=1")
    (line,) = written("json")
    assert json.loads(line.removeprefix("event=request "))["x_request_id"] == "x=1 y"
    assert written("off") == []


def refused(style: str, times: int = 1) -> list[str]:
    lines: list[str] = []
    writer = RequestLines("tiny", style, lines.append)  # type: ignore[arg-type]
    error = bad_request("unknown field x event=forged", "x event=forged", "unknown_parameter")
    for _ in range(times):
        writer.refused("a\nb", "/v1/completions", error)
    return lines


def test_a_request_that_was_refused_has_a_line_without_its_clients_words():
    (text,) = refused("text")
    assert text == (
        "event=request x_request_id=a%0Ab model=tiny endpoint=/v1/completions status=400 code=unknown_parameter"
    )
    (line,) = refused("json")
    fields = json.loads(line.removeprefix("event=request "))
    assert (fields["status"], fields["code"], "forged" in line) == (400, "unknown_parameter", False)
    assert refused("off") == []
    assert len(refused("text", 500)) <= 2 * request_line._LINES_PER_S + 1


@pytest.mark.parametrize(("write", "number"), [(written, 0), (refused, 1)])
def test_the_page_shows_the_fields_that_a_line_has(write, number):
    def names(line: str) -> list[str]:
        return [field.partition("=")[0] for field in line.split()]

    shown = shown_block("docs/observe.md", __file__, number)
    assert ["event", *names(shown)] == names(write("text")[0])


def test_a_storm_makes_a_bounded_number_of_lines():
    most = 2 * request_line._LINES_PER_S + 1
    assert request_line._LINES_PER_S <= len(written("text", times=500)) <= most
