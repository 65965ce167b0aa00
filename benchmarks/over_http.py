"""The served application: its own Ray on this machine, and streaming clients that spend as little as they can."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from benchmarks.workload import ANSWER_TOKENS, Timings, prompt


class OverHttp:
    """``bireme serve`` in a process group of its own; ends with everything it started.

    Args:
        settings: settings of the application, as on the command line.
    """

    def __init__(self, settings: dict[str, object], log_path: str) -> None:
        self.port = _free_port()
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [
                {
                    "name": "default",
                    "route_prefix": "/",
                    "import_path": "deployments.llm:build_openai_app",
                    "args": settings,
                }
            ],
        }
        self._config_path = log_path + ".json"
        with open(self._config_path, "w") as file:
            json.dump(config, file)
        self._log = open(log_path, "w")  # noqa: SIM115 (the server writes to it until close)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", "serve", self._config_path, "--address", "local"],
            stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._model = self._wait_until_ready()
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
            "model": self._model, "prompt": token_ids, "max_tokens": ANSWER_TOKENS, "temperature": 0,
            "ignore_eos": True, "stream": True, "return_token_ids": True,
        }).encode()  # fmt: skip
        asked, arrivals = time.perf_counter(), []
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
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
                f"{len(arrivals)} of {ANSWER_TOKENS} tokens arrived; the server's log is {self._log.name}"
            )
        return asked, arrivals

    def _wait_until_ready(self) -> str:
        url = f"http://127.0.0.1:{self.port}/v1/models"
        for _ in range(600):
            if self._server.poll() is not None:
                raise RuntimeError(f"the server ended; its log is {self._log.name}")
            try:
                with urllib.request.urlopen(url, timeout=2) as reply:
                    return json.load(reply)["data"][0]["id"]
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"the server is not ready; its log is {self._log.name}")

    def close(self) -> None:
        """End the server as Ctrl-C would, and its whole process group if that does not help."""
        self._server.send_signal(signal.SIGINT)
        try:
            self._server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._server.pid, signal.SIGKILL)
        self._log.close()
        os.unlink(self._config_path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
