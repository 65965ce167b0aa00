"""Files of requests in the format of OpenAI's batch API: one JSON object a line in, one a line out, in the same order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cluster.client.client import AsyncClient
from cluster.client.errors import ApiStatusError, ClientError, RateLimitError
from cluster.errors import BiremeError

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
_FIRST_FIELD = {CHAT: "messages", COMPLETION: "prompt"}
# Answers that are complete wait for those before them, but not without bound.
_AHEAD = 16
_RETRY_S = 1.0


class BatchLine(NamedTuple):
    """One request; ``fault`` says why it is none."""

    custom_id: str | None
    url: str
    body: dict[str, Any]
    fault: str | None = None


def parse_line(line: bytes) -> BatchLine:
    """A line of the input file."""
    try:
        found = json.loads(line)
    except ValueError:
        return BatchLine(None, "", {}, "the line is not JSON")
    if not isinstance(found, dict):
        return BatchLine(None, "", {}, "the line is no object")
    custom_id, url, body = found.get("custom_id"), found.get("url"), found.get("body")
    if not isinstance(custom_id, str):
        return BatchLine(None, "", {}, f"custom_id: got {custom_id!r}, needs a string")
    fault = None
    if found.get("method", "POST") != "POST":
        fault = f"method: got {found['method']!r}, allowed: POST"
    elif not isinstance(url, str) or url not in _FIRST_FIELD:
        fault = f"url: got {url!r}, allowed: {', '.join(_FIRST_FIELD)}"
    elif not isinstance(body, dict):
        fault = f"body: got {body!r}, needs an object"
    elif _FIRST_FIELD[url] not in body:
        fault = f"body.{_FIRST_FIELD[url]}: missing"
    elif "self" in body:  # no field of the API, and Python would take it for the client
        fault = "body.self: unknown field"
    elif body.get("stream"):
        fault = "body.stream: got true, allowed: false"
    return BatchLine(custom_id, str(url), body if isinstance(body, dict) else {}, fault)


def requests_of(file: BinaryIO) -> Iterator[BatchLine]:
    """The requests of a file, without its empty lines."""
    return (parse_line(line) for line in file if line.strip())


def check_names(file: Path) -> int:
    """How many requests a file has.

    Raises:
        BiremeError: two have the same name, by which nobody could tell their results apart.
    """
    lines: dict[str, int] = {}
    total = 0
    with open(file, "rb") as requests:
        for number, line in enumerate(requests, 1):
            if not line.strip():
                continue
            total += 1
            custom_id = parse_line(line).custom_id
            if custom_id is None:
                continue
            if (first := lines.setdefault(custom_id, number)) != number:
                raise BiremeError(f"{file}: line {number}: custom_id {custom_id!r} is that of line {first}, too")
    return total


class BatchRun:
    """Sends requests, so many at a time, and writes results in the order of the requests.

    Args:
        concurrency: requests that are under way.
        written: called after each result with whether it is an error, and the tokens of its answer.
    """

    def __init__(self, client: AsyncClient, concurrency: int, written: Callable[[bool, int], None]) -> None:
        self._client, self._concurrency, self._written = client, concurrency, written

    async def run(self, requests: Iterator[BatchLine], output: BinaryIO) -> None:
        """Until the last result is written.

        Raises:
            BiremeError: the server cannot be reached; what was written before is whole, and a later run goes on behind it.
        """
        sending = asyncio.Semaphore(self._concurrency)
        tasks: asyncio.Queue[asyncio.Task[dict[str, Any]] | None] = asyncio.Queue(_AHEAD * self._concurrency)

        async def limited(request: BatchLine) -> dict[str, Any]:
            try:
                return await self._result(request)
            finally:
                sending.release()

        async def start_all() -> None:
            for request in requests:
                await sending.acquire()
                await tasks.put(asyncio.create_task(limited(request)))
            await tasks.put(None)

        starting = asyncio.create_task(start_all())
        task = None
        try:
            while (task := await tasks.get()) is not None:
                result = await task
                output.write(json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
                output.flush()
                self._written(is_error(result), _num_tokens(result))
            await starting
        finally:
            left = [starting, *([task] if task else []), *(tasks.get_nowait() for _ in range(tasks.qsize()))]
            for other in filter(None, left):
                other.cancel()
            await asyncio.gather(*filter(None, left), return_exceptions=True)

    async def _result(self, request: BatchLine) -> dict[str, Any]:
        if request.fault is not None:
            return _line(request, error={"code": "invalid_line", "message": request.fault})
        body = {name: value for name, value in request.body.items() if name != "stream"}
        first = body.pop(_FIRST_FIELD[request.url])
        ask: Any = self._client.chat if request.url == CHAT else self._client.complete
        while True:
            try:
                answer = await ask(first, **body)
            except RateLimitError as error:
                await asyncio.sleep(error.retry_after or _RETRY_S)
            except ApiStatusError as error:
                fault = {"message": error.message, "param": error.param, "code": error.code}
                response = {"status_code": error.status or 500, "request_id": None, "body": {"error": fault}}
                return _line(request, response)
            except ClientError as error:
                if type(error) is ClientError:  # nobody answers, so the other requests would fare no better
                    raise
                return _line(request, error={"code": error.code, "message": error.message})
            else:
                return _line(request, {"status_code": 200, "request_id": answer.id, "body": answer.raw})


def _line(request: BatchLine, response: Any = None, error: Any = None) -> dict[str, Any]:
    return {
        "id": f"batch_req_{request.custom_id}",
        "custom_id": request.custom_id,
        "response": response,
        "error": error,
    }


def is_error(result: dict[str, Any]) -> bool:
    return result["error"] is not None or result["response"]["status_code"] != 200


def _num_tokens(result: dict[str, Any]) -> int:
    return 0 if is_error(result) else (result["response"]["body"].get("usage") or {}).get("completion_tokens", 0)
