"""How long requests wait that come when one engine is full and a second one is yet to start.

    python -m benchmarks.serving.bench_elastic [--streams 32] [--slots 8] [--max-tokens 128] [--rounds 3]

The default model, one engine that Serve may scale to two, as `bireme serve` starts it. Each round begins with one engine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.serving.served_app import ServedApp, settings_config

_ROUND_TIMEOUT_S = 300.0


def main(
    streams: Annotated[int, typer.Option(help="Requests that come at once.")] = 32,
    slots: Annotated[int, typer.Option(help="Requests that one engine runs at a time.")] = 8,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 128,
    rounds: Annotated[int, typer.Option(help="Times that the load comes.")] = 3,
) -> None:
    """Measure, and print a line a round."""
    settings: dict[str, Any] = {
        "max_num_seqs": slots,
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 2,
                "target_ongoing_requests": slots,
                "upscale_delay_s": 0.5,
                "downscale_delay_s": 5.0,
                "metrics_interval_s": 0.5,
                "look_back_period_s": 1.0,
            }
        },
    }
    table = Table(
        "round", "second engine after", "first token p50", "p95", "all answered", "tokens of each engine", "moved"
    )
    app = ServedApp(settings_config(settings), f"{tempfile.mkdtemp()}/server.log")
    try:
        for number in range(rounds):
            table.add_row(str(number + 1), *_round(app, streams, max_tokens))
    finally:
        app.close()
    Console(width=130).print(table)


def _round(app: ServedApp, streams: int, max_tokens: int) -> list[str]:
    deadline = time.monotonic() + _ROUND_TIMEOUT_S
    while len(app.engines()) != 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    before = {engine["engine_id"]: engine["num_generated_tokens"] for engine in app.engines()}
    moved = _moves(app)
    first, seconds, second_engine_s = asyncio.run(_load(app, streams, max_tokens))
    made = [e["num_generated_tokens"] - before.get(e["engine_id"], 0) for e in app.engines()]
    first.sort()
    return [
        "none" if second_engine_s is None else f"{second_engine_s:.1f} s",
        f"{statistics.median(first):.1f} s",
        f"{first[int(0.95 * len(first))]:.1f} s",
        f"{seconds:.1f} s",
        " + ".join(map(str, made)),
        str(_moves(app) - moved),
    ]


def _moves(app: ServedApp) -> int:
    return app.get("/v1/status")["events"].get("bireme_request_moves", 0)


async def _load(app: ServedApp, streams: int, max_tokens: int) -> tuple[list[float], float, float | None]:
    started = time.monotonic()
    async with httpx.AsyncClient(base_url=app.url, timeout=_ROUND_TIMEOUT_S) as client:
        watching = asyncio.create_task(_second_engine(client, started))
        first = await asyncio.gather(*(_first_token(client, app.model, n, max_tokens) for n in range(streams)))
        seconds = time.monotonic() - started
        watching.cancel()
        await asyncio.wait((watching,))
        return list(first), seconds, None if watching.cancelled() else watching.result()


async def _first_token(client: httpx.AsyncClient, model: str, number: int, max_tokens: int) -> float:
    body = {
        "model": model, "prompt": f"{number}. Once upon a time", "stream": True, "temperature": 0, "max_tokens": max_tokens,
        "ignore_eos": True,
    }  # fmt: skip
    started, first = time.monotonic(), None
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if first is None and line.startswith("data: {") and json.loads(line[6:])["choices"][0].get("text"):
                first = time.monotonic() - started
    assert first is not None
    return first


async def _second_engine(client: httpx.AsyncClient, started: float) -> float:
    while len((await client.get("/v1/status")).json()["engines"]) < 2:
        await asyncio.sleep(0.25)
    return time.monotonic() - started


if __name__ == "__main__":
    typer.run(main)
