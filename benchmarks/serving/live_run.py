"""A run of recorded load on live engines that come and go by objectives, every token of every answer compared."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from actors.engine.load_simulated import seeded_tokens, seeded_vocabulary
from actors.model_files.config import load_model_config
from actors.model_files.source import resolve_model
from actors.text.tokenizer import load_tokenizer
from benchmarks.serving.served_app import ServedApp, settings_config
from cluster.client import AsyncClient
from cluster.config import DEFAULT_MODEL
from cluster.scaling.log import Record
from deployments.simulator.arrivals import Arrivals
from deployments.start.ray_session import ray_base

# After the last answer: as long as engines that nobody needs may stay.
_IDLE_S = 45.0
# Of an engine that computes, so many different requests come again and again.
_NUM_DIFFERENT = 24
_TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Ask = Callable[[int], Awaitable[list[int]]]


@dataclass
class Live:
    """What one run found.

    Attributes:
        ttft_s, tpot_s: of each answer, in the order of the load; nan where there is none.
        faults: what was wrong with answers, one sentence each.
        targets: (second of the load, engines wanted) where that changed.
        start_times_s: from a decision to the engine that served.
        replace_times_s: from the death of an engine to the one that served in its stead.
        killed_at: seconds of the load.
        idle_s: for how long the policy had been asked when the load began.
    """

    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    targets: list[tuple[float, int]] = field(default_factory=list)
    start_times_s: list[float] = field(default_factory=list)
    killed_at: list[float] = field(default_factory=list)
    replace_times_s: list[float] = field(default_factory=list)
    idle_s: float = 0.0


class SimulatedEngines:
    """Engines that compute nothing: steps take the time that the settings say, and tokens follow each other by one stride."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = {"device": "simulated", **settings}
        source = resolve_model(DEFAULT_MODEL)
        self._vocabulary = seeded_vocabulary(load_model_config(source), load_tokenizer(source))
        self._place = {token: index for index, token in enumerate(self._vocabulary)}
        token = seeded_tokens(self._vocabulary, 0)
        self._stride = self._place[token("", 1)] - self._place[token("", 0)]

    def prompt(self, number: int, length: int) -> list[int]:
        return random.Random(number).choices(self._vocabulary, k=length)

    def sizes(self, number: int, load: Arrivals) -> tuple[int, int]:
        return int(load.prompt[number]), int(load.output[number])

    async def learn(self, count: int, ask: Ask) -> None:
        """Nothing: what follows is known."""

    def fault(self, number: int, ids: Sequence[int]) -> str:
        """What is wrong with the tokens of an answer; empty: nothing."""
        places = [self._place[token] for token in ids]
        wrong = [
            i for i, (a, b) in enumerate(itertools.pairwise(places)) if (b - a - self._stride) % len(self._vocabulary)
        ]
        return f"token {wrong[0] + 1} is not the one that follows" if wrong else ""


class TinyEngines:
    """Engines that compute two layers with random weights on the cores: answers are those of an undisturbed engine."""

    def __init__(self, settings: dict[str, Any]) -> None:
        folder = Path(tempfile.mkdtemp())
        (folder / "config.json").write_text(json.dumps(_TINY))
        tokenizer = resolve_model(DEFAULT_MODEL).tokenizer
        own = {"model": str(folder), "load_format": "dummy", "tokenizer": str(tokenizer), "model_id": "tiny"}
        self.settings = {"device": "cpu", "num_threads": 1, **own, **settings}
        self._twins: dict[int, list[int]] = {}

    def prompt(self, number: int, length: int) -> list[int]:
        return random.Random(number % _NUM_DIFFERENT).choices(range(100, 40_000), k=length)

    def sizes(self, number: int, load: Arrivals) -> tuple[int, int]:
        number %= min(_NUM_DIFFERENT, len(load.at))
        return int(load.prompt[number]), int(load.output[number])

    async def learn(self, count: int, ask: Ask) -> None:
        """Ask for each of the ``count`` different answers, one after the other."""
        self._twins = {number: await ask(number) for number in range(count)}

    def fault(self, number: int, ids: Sequence[int]) -> str:
        """What is wrong with the tokens of an answer; empty: nothing."""
        return "" if list(ids) == self._twins[number % len(self._twins)] else "it is not that of an undisturbed engine"


Engines = SimulatedEngines | TinyEngines


def live_run(load: Arrivals, engines: Engines, kills: int) -> Live:
    """A server of its own, the load, and after it a while without any.

    Args:
        kills: so many engines are killed meanwhile, one at a time, each while another one serves.
    """
    before = set(_logs())
    app = ServedApp(settings_config(engines.settings), f"{tempfile.mkdtemp()}/server.log")
    try:
        live, began_at = asyncio.run(_Run(app, load, engines).run(kills))
        (log,) = set(_logs()) - before
        _read_decisions(live, log, began_at)
        return live
    finally:
        app.close()


class _Run:
    def __init__(self, app: ServedApp, load: Arrivals, engines: Engines) -> None:
        self._app, self._load, self._engines = app, load, engines
        self._live = Live([float("nan")] * len(load.at), [float("nan")] * len(load.at))
        self._began = 0.0

    async def run(self, kills: int) -> tuple[Live, float]:
        """(what clients saw, second since 1970 at which the load began)."""
        load = self._load
        async with AsyncClient(self._app.url, timeout=120) as client:
            await self._engines.learn(min(_NUM_DIFFERENT, len(self._load.at)), lambda number: self._ask(client, number))
            self._began, began_at = time.monotonic(), time.time()
            killing = [asyncio.create_task(self._kill(load.duration_s * (n + 1) / (kills + 1))) for n in range(kills)]
            await asyncio.gather(*(self._come(client, number) for number in range(len(load.at))))
            for task in killing:
                task.cancel()
            for result in await asyncio.gather(*killing, return_exceptions=True):
                if isinstance(result, Exception):  # not that it was cancelled
                    self._live.faults.append(f"an engine could not be killed: {result!r}")
            await asyncio.sleep(_IDLE_S)
        return self._live, began_at

    async def _come(self, client: AsyncClient, number: int) -> None:
        await asyncio.sleep(max(0.0, self._began + float(self._load.at[number]) - time.monotonic()))
        try:
            ids = await self._ask(client, number)
        except Exception as error:
            self._live.faults.append(f"request {number}: {type(error).__name__}: {error}")
            return
        wanted = self._engines.sizes(number, self._load)[1]
        fault = f"{len(ids)} tokens of {wanted}" if len(ids) != wanted else self._engines.fault(number, ids)
        if fault:
            self._live.faults.append(f"request {number}: {fault}")

    async def _ask(self, client: AsyncClient, number: int) -> list[int]:
        length, max_tokens = self._engines.sizes(number, self._load)
        prompt = self._engines.prompt(number, length)
        options = {"max_tokens": max_tokens, "ignore_eos": True, "return_token_ids": True, "temperature": 0}
        sent, first, last = time.monotonic(), 0.0, 0.0
        ids: list[int] = []
        async for chunk in client.stream_complete(prompt, **options):
            if chunk.choices and chunk.choices[0].token_ids:
                last = time.monotonic()
                first = first or last
                ids += chunk.choices[0].token_ids
        if not ids:
            return ids
        self._live.ttft_s[number] = first - sent
        self._live.tpot_s[number] = (last - first) / max(len(ids) - 1, 1)
        return ids

    async def _kill(self, at: float) -> None:
        await asyncio.sleep(max(0.0, self._began + at - time.monotonic()))
        while len(engines := await asyncio.to_thread(self._app.engines)) < 2:
            await asyncio.sleep(0.5)
        os.kill(random.Random(at).choice(engines)["pid"], signal.SIGKILL)
        self._live.killed_at.append(time.monotonic() - self._began)


def _logs() -> list[Path]:
    return list((ray_base() / "ray").glob("session_2*/logs/serve/autoscaling_*.jsonl"))


def _read_decisions(live: Live, log: Path, began_at: float) -> None:
    """What the log of decisions says of targets, starts and those that replace the dead."""
    records = [msgspec.json.decode(line, type=Record) for line in log.read_bytes().splitlines()]
    if not records:
        return
    live.idle_s = max(0.0, began_at - records[0].at)
    wanted: list[float] = []
    dead = [began_at + second for second in live.killed_at]
    target, ready = records[0].target, records[0].inputs.num_ready or 0
    for record in records:
        num_ready = record.inputs.num_ready or 0
        for _ in range(num_ready - ready):
            # Serve sees a death before it starts another engine; what was decided for earlier comes first.
            if wanted and not (dead and dead[0] < wanted[0]):
                live.start_times_s.append(record.at - wanted.pop(0))
            elif dead and dead[0] < record.at:
                live.replace_times_s.append(record.at - dead.pop(0))
        if record.target != target or not live.targets:
            live.targets.append((record.at - began_at, record.target))
        wanted += [record.at] * max(0, record.target - target)
        del wanted[max(0, len(wanted) + min(0, record.target - target)) :]
        target, ready = record.target, num_ready
