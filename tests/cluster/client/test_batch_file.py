"""Batch files: which lines are requests, the order of results, and how many are under way."""

from __future__ import annotations

import asyncio
import io
import json
from types import SimpleNamespace

import pytest

from cluster.client.batch_file import BatchRun, check_names, parse_line, requests_of
from cluster.client.errors import BadRequestError, ClientError, RateLimitError
from cluster.errors import BiremeError


def request(custom_id: object, url: str = "/v1/completions", **body) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompt": "x", **body}}).encode()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "not JSON"),
        (b"[]", "no object"),
        (request(7), "custom_id: got 7"),
        (request("a", "/v1/embeddings"), "url: got '/v1/embeddings'"),
        (request("a", "/v1/chat/completions"), "body.messages: missing"),
        (request("a", stream=True), "body.stream"),
        (b'{"custom_id": "a", "url": "/v1/completions", "body": 1}', "body: got 1"),
        (b'{"custom_id": "a", "url": ["x"], "body": {}}', "url: got"),
        (b'{"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}}', "method: got 'GET'"),
    ],
)
def test_a_line_that_is_no_request_says_why(line, fault):
    assert fault in (parse_line(line).fault or "")


class Asked:
    """Answers after as many turns of the loop as the prompt says, or with the errors it is given."""

    def __init__(self, errors: dict[int, list[BiremeError]] | None = None) -> None:
        self.errors, self.running, self.most = errors or {}, 0, 0

    async def complete(self, prompt: int, **options):
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(prompt % 7):
            await asyncio.sleep(0)
        self.running -= 1
        if self.errors.get(prompt):
            raise self.errors[prompt].pop(0)
        return SimpleNamespace(id=f"cmpl-{prompt}", raw={"usage": {"completion_tokens": 2}, "text": "\ud83d é"})


async def run(asked: Asked, lines: list[bytes], concurrency: int = 4) -> list[dict]:
    file = io.BytesIO()
    await BatchRun(asked, concurrency, lambda *_: None).run(requests_of(io.BytesIO(b"\n\n".join(lines))), file)
    return [json.loads(line) for line in file.getvalue().splitlines()]


async def test_results_come_in_order_with_their_errors_and_no_more_are_under_way_than_asked_for():
    busy, wrong = RateLimitError("full", status=429, retry_after=0.001), BadRequestError("too long", status=400)
    asked = Asked({3: [busy, busy], 5: [wrong]})
    lines = [request(str(i), prompt=i) for i in range(200)]
    lines[9] = b"{"
    results = await run(asked, lines)
    assert [row["custom_id"] for row in results] == [None if i == 9 else str(i) for i in range(200)]
    assert asked.most == 4
    assert [i for i, row in enumerate(results) if row["error"]] == [9]
    refused = [i for i, row in enumerate(results) if row["response"] and row["response"]["status_code"] != 200]
    assert refused == [5]
    assert results[5]["response"]["body"]["error"]["message"] == "too long"
    assert results[3]["response"]["request_id"] == "cmpl-3"


async def test_a_server_that_is_gone_ends_the_run_after_whole_lines():
    file = io.BytesIO()
    lines = b"\n".join(request(str(i), prompt=i) for i in range(50))
    asked = Asked({20: [ClientError("no answer")]})
    with pytest.raises(ClientError):
        await BatchRun(asked, 4, lambda *_: None).run(requests_of(io.BytesIO(lines)), file)
    assert [json.loads(line)["custom_id"] for line in file.getvalue().splitlines()] == [str(i) for i in range(20)]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("number", [2, 4])
def test_a_name_that_two_lines_have_is_refused_with_their_numbers(tmp_path, number):
    lines = [request("a"), b"", request("b"), b"{", b"{"]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    assert check_names(tmp_path / "in.jsonl") == 4
    lines[number - 1] = request("a")
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(BiremeError, match=f"line {number}: custom_id 'a' is that of line 1, too"):
        check_names(tmp_path / "in.jsonl")
