"""The served application: its own Ray on this machine, and the project's load client."""

from __future__ import annotations

from benchmarks.serving.loads import checked, closed_loop
from benchmarks.serving.served_app import ServedApp, settings_config
from benchmarks.workload import ANSWER_TOKENS, PROMPT_TOKENS, Timings
from cluster.bench.processes import LoadProcesses


class OverHttp:
    """The served application under a closed loop of streaming clients.

    Args:
        settings: settings of the application, as on the command line.
        log_path: where the server's output goes.
    """

    def __init__(self, settings: dict[str, object], log_path: str) -> None:
        self._app = ServedApp(settings_config(settings), log_path)
        self._clients = LoadProcesses(1)
        self._runs = 0

    def run(self, concurrency: int, requests: int) -> Timings:
        """``concurrency`` clients that ask again as soon as they are answered."""
        self._runs += 1
        tokens = (PROMPT_TOKENS, ANSWER_TOKENS)
        self._clients.start(closed_loop(self._app, concurrency, tokens, seed=self._runs, requests=requests))
        result = checked(self._clients.result())
        timings = Timings(seconds=result.seconds)
        for sample in result.samples:
            timings.first_token.append(sample.ttft)
            timings.per_token += [] if sample.tpot is None else [sample.tpot]
            timings.tokens += sample.output_tokens
        return timings

    def close(self) -> None:
        """End the clients and the server."""
        self._clients.close()
        self._app.close()
