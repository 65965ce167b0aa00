"""The engine in this process, through its loop: what the served path is compared with.

    python -m benchmarks.in_process SETTINGS LOADS

Prints one line of JSON, a Window a load. SETTINGS: of an engine, as JSON; LOADS: lists of streams, prompt tokens, answer tokens,
seconds and, if answers have several lengths, the share by which they are shorter or longer.
"""

from __future__ import annotations

import json
import queue
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from actors.engine.loop import EngineLoop
from actors.engine.starting import start_engine
from benchmarks.workload import ANSWER_TOKENS, Timings, prompt
from cluster.config import EngineConfig
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams

# Before what counts, as of served loads: the first answers begin together.
RAMP_S = 1.5


@dataclass
class Window:
    """What a closed loop saw for some seconds; p50 in milliseconds."""

    streams: int
    tokens_per_s: float
    first_ms: float


class InProcess:
    """An engine that stays loaded between runs and costs nothing while it is idle."""

    def __init__(self, config: EngineConfig) -> None:
        self._published: queue.SimpleQueue = queue.SimpleQueue()
        self.engine = start_engine(config, "engine")
        self._steps: list[tuple[float, float]] = []
        self._loop = EngineLoop(self.engine, self._publish, lambda error: self._published.put(error))
        self._count = 0

    def run(self, concurrency: int, requests: int) -> Timings:
        """``concurrency`` streams that ask again as soon as they are answered."""
        timings, asked, arrivals = Timings(), {}, {}
        self._steps.clear()
        started, left = time.perf_counter(), requests

        def ask() -> None:
            nonlocal left
            left -= 1
            self._count += 1
            name = str(self._count)
            arrivals[name], asked[name] = [], time.perf_counter()
            params = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS, ignore_eos=True)
            self._loop.submit(EngineRequest(name, prompt(self._count), params))

        for _ in range(min(concurrency, requests)):
            ask()
        while arrivals:
            now, deltas = self._take()
            for delta in deltas:
                arrivals[delta.request_id] += [now] * len(delta.token_ids)
                if delta.finish_reason:
                    timings.add(asked[delta.request_id], arrivals.pop(delta.request_id))
                    if left:
                        ask()
        timings.seconds = time.perf_counter() - started
        saved = [at for at, _ in self._steps]
        # A step that was waited for after an idle moment says nothing about steps in a row.
        timings.step = [b - a for a, b in pairwise(saved)]
        timings.device = [device for _, device in self._steps[1:]]
        return timings

    def window(
        self, streams: int, prompt_tokens: int, answer_tokens: int, seconds: float, spread: float = 0.0
    ) -> Window:
        """``streams`` that ask again as soon as they are answered, of which ``seconds`` count.

        Answers of one length keep step: all prompts come together. With a ``spread`` there is one every few steps.
        """
        lengths = random.Random(1)
        asked: dict[str, float] = {}
        first: list[float] = []
        tokens, running = 0, 0
        begin = time.perf_counter() + RAMP_S
        end = begin + seconds

        def ask() -> None:
            nonlocal running
            running, self._count = running + 1, self._count + 1
            asked[str(self._count)] = time.perf_counter()
            max_tokens = round(answer_tokens * lengths.uniform(1 - spread, 1 + spread))
            params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
            self._loop.submit(EngineRequest(str(self._count), prompt(self._count, prompt_tokens), params))

        for _ in range(streams):
            ask()
        while running:
            now, deltas = self._take()
            for delta in deltas:
                since = asked.pop(delta.request_id, None) if delta.token_ids else None
                if since is not None and begin <= since and now < end:
                    first.append(now - since)
                tokens += len(delta.token_ids) if begin <= now < end else 0
                if delta.finish_reason:
                    running -= 1
                    if now < end:
                        ask()
        return Window(streams, tokens / seconds, 1e3 * statistics.median(first) if first else float("nan"))

    def record(self, concurrency: int, steps: int) -> dict[str, Any]:
        """Chrome trace of the first ``steps`` steps of a run (``actors.engine.stats.timeline``)."""
        timeline = self._loop.call(lambda engine: engine.start_timeline(steps)).result()
        self.run(concurrency, concurrency)
        self._loop.call(lambda engine: engine.stop_timeline(timeline)).result()
        return timeline.chrome_trace()

    def close(self) -> None:
        self._loop.close()

    def _publish(self, deltas: list) -> None:
        step = self.engine.executor.last_saved
        if step is not None:
            self._steps.append((step.saved_at, step.device_end - step.device_start))
        self._published.put((time.perf_counter(), deltas))

    def _take(self) -> tuple[float, list]:
        item = self._published.get()
        if isinstance(item, BaseException):
            raise item
        return item


def main() -> None:
    """Load an engine, and print the windows of all loads."""
    settings, loads = (json.loads(text) for text in sys.argv[1:3])
    engine = InProcess(EngineConfig(**settings))
    try:
        print(json.dumps([asdict(engine.window(*load)) for load in loads]))
    finally:
        engine.close()


if __name__ == "__main__":
    main()
