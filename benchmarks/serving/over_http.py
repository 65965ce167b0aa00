"""The served application: its own Ray on this machine, and streaming clients that spend as little as they can."""

from __future__ import annotations

import asyncio
import json
import time

from benchmarks.serving.served_app import ServedApp, settings_config
from benchmarks.workload import ANSWER_TOKENS, Timings, prompt


class OverHttp:
    """The served application under a closed loop of streaming clients.

    Args:
        settings: settings of the application, as on the command line.
        log_path: where the server's output goes.
    """

    def __init__(self, settings: dict[str, object], log_path: str) -> None:
        self._app = ServedApp(settings_config(settings), log_path)
        self._count = 1_000_000

    def run(self, concurrency: int, requests: int) -> Timings:
        """``concurrency`` clients that ask again as soon as they are answered."""
        return asyncio.run(self._run(concurrency, requests))

    async def _run(self, concurrency: int, requests: int) -> Timings:
        timings, left = Timings(), requests

        async def client() -> None:
            nonlocal left
            while left:
                left -= 1
                self._count += 1
                timings.add(*await self._stream(prompt(self._count)))

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        timings.seconds = time.perf_counter() - started
        return timings

    async def _stream(self, token_ids: list[int]) -> tuple[float, list[float]]:
        """One request on a connection of its own; (when it was asked, when each token arrived)."""
        body = json.dumps({
            "model": self._app.model, "prompt": token_ids, "max_tokens": ANSWER_TOKENS, "temperature": 0,
            "ignore_eos": True, "stream": True, "return_token_ids": True,
        }).encode()  # fmt: skip
        asked, arrivals = time.perf_counter(), []
        reader, writer = await asyncio.open_connection("127.0.0.1", self._app.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        async for line in reader:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                for choice in json.loads(line[6:])["choices"]:
                    arrivals += [now] * len(choice.get("token_ids") or [])
        writer.close()
        if len(arrivals) != ANSWER_TOKENS:
            raise RuntimeError(
                f"{len(arrivals)} of {ANSWER_TOKENS} tokens arrived; the server's log is {self._app.log_path}"
            )
        return asked, arrivals

    def close(self) -> None:
        """End the server."""
        self._app.close()
