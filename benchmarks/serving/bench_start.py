"""How long an engine's start takes, from a request that finds none to its first token, and what of it takes how long.

    python -m benchmarks.serving.bench_start [--rounds 5] [--model NAME] [--config FILE] [--warm-spares N] [--from-nothing]

One application that goes back to no engine after a second without a request; each round begins there, once there are the warm
spares that there are to be. ``--from-nothing`` removes the kept weights of all models first, and keeps the first engine busy
until it has written its own. ``--config ray_configs/llama_8b_gpu.yaml`` measures a GPU's.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.serving.loads import checked, closed_loop
from benchmarks.serving.process_cpu import cpu_seconds
from benchmarks.serving.served_app import ServedApp, settings_config
from cluster.bench.processes import LoadProcesses
from cluster.observability.start_stages import STAGES
from cluster.process.cache import cache_dir

_TIMEOUT_S = 300.0
_PROMPT_TOKENS, _ANSWER_TOKENS = 4, 8
# What comes before the engine's own stages: the request, Serve's decision, and Ray's way to a process.
_DECISION = "decision"
_TOTAL = "request to first token"
_CPU = "CPU of both processes"


def main(
    rounds: Annotated[int, typer.Option(help="Starts to measure.", min=1)] = 5,
    model: Annotated[str | None, typer.Option(help="As the setting; default: the default model.")] = None,
    config: Annotated[Path | None, typer.Option(help="A Serve config whose settings are used.", exists=True)] = None,
    warm_spares: Annotated[int, typer.Option(help="As the setting.", min=0)] = 0,
    from_nothing: Annotated[bool, typer.Option(help="Remove all kept weights first.")] = False,
) -> None:
    """Measure, and print a column a start."""
    autoscaling = {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 1}
    settings: dict[str, Any] = {} if config is None else yaml.safe_load(config.read_text())["applications"][0]["args"]
    settings |= {"deployment_config": {"autoscaling_config": autoscaling}, "warm_spares": warm_spares}
    if from_nothing:
        shutil.rmtree(_kept(), ignore_errors=True)
    app = ServedApp(settings_config(settings | ({"model": model} if model else {})), f"{tempfile.mkdtemp()}/server.log")
    clients = LoadProcesses(1)
    try:
        found = []
        for number in range(rounds):
            found.append(_round(app, clients, warm_spares, number))
            if from_nothing and number == 0:
                _stay_until_kept(app, clients)
    finally:
        clients.close()
        app.close()
    table = Table("seconds", *(str(number + 1) for number in range(rounds)), "median")
    for stage in (_DECISION, *STAGES, _TOTAL, _CPU):
        values = [one.get(stage, 0.0) for one in found]
        table.add_row(stage, *(f"{value:.2f}" for value in values), f"{statistics.median(values):.2f}")
    Console(width=130).print(table)


def _round(app: ServedApp, clients: LoadProcesses, warm_spares: int, number: int) -> dict[str, float]:
    _wait_until_none(app, warm_spares)
    # Of tokens that a random model takes from beyond its tokenizer's there is no text.
    load = closed_loop(app, 1, (_PROMPT_TOKENS, _ANSWER_TOKENS), seed=number, requests=1, return_token_ids=True)
    clients.start(load)
    first = checked(clients.result()).samples[0].ttft
    (engine,) = app.engines()
    seconds = engine["start"]["seconds"]
    of_processes = sum(cpu_seconds(pid) for pid in (engine["pid"], engine["replica_pid"]))
    return {**seconds, _DECISION: max(0.0, first - sum(seconds.values())), _TOTAL: first, _CPU: of_processes}


def _kept() -> Path:
    return cache_dir() / "ready_weights"


def _stay_until_kept(app: ServedApp, clients: LoadProcesses) -> None:
    started, deadline = time.monotonic(), time.monotonic() + _TIMEOUT_S
    while not list(_kept().glob("*.weights")):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no weights are kept; the server's log is {app.log_path}")
        load = closed_loop(app, 1, (_PROMPT_TOKENS, _ANSWER_TOKENS), seed=99, seconds=1, return_token_ids=True)
        clients.start(load)
        checked(clients.result())
    print(f"weights were kept {time.monotonic() - started:.1f} s after the first answer", flush=True)


def _wait_until_none(app: ServedApp, warm_spares: int) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        status = app.get("/v1/status")
        ready = [keeper[kind]["ready"] for keeper in status["spares"] for kind in ("replica", "runner")]
        has_spares = not warm_spares or (bool(ready) and min(ready) >= warm_spares)
        if app.get("/health")["status"] == "asleep" and not status["engines"] and has_spares:
            time.sleep(1)  # whatever ended or began has settled
            return
        time.sleep(0.5)
    raise RuntimeError(f"engines do not go; the server's log is {app.log_path}")


if __name__ == "__main__":
    typer.run(main)
