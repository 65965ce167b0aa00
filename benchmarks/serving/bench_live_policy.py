"""Recorded load on live engines that come and go by objectives, and the same load in the simulator.

    python -m benchmarks.serving.bench_live_policy TRACE [--seconds 300] [--speed 144] [--runs 3] [--kills 2] [--earlier FILE]

Each run is a server of its own, as `bireme serve` starts it. Of every answer each token is compared: none may be lost, repeated
or changed. Engines compute nothing unless `--tiny`, and a step takes the time that the settings say, so that the cores of this
machine are not what is measured; all else is real. Kills take an engine's process away while others serve. The simulator runs the
same requests with the kills of each run, several times, and with the times that starts and replacements took in all of them.
Exits with 1 if an answer failed or differed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.serving.live_run import Live, SimulatedEngines, TinyEngines, live_run
from cluster.scaling.capacity import StepCosts
from cluster.scaling.fleet import PolicySettings
from cluster.scaling.traces import read_trace
from deployments.simulator.arrivals import Arrivals, arrivals_of, scaled, single_requests
from deployments.simulator.events import event_of_pairs
from deployments.simulator.oracle import factor_for
from deployments.simulator.requests.exact_engine import ExactEngine
from deployments.simulator.requests.requests_fleet import simulate_requests
from deployments.simulator.result import Result, percentiles
from deployments.simulator.scaler import PolicyScaler
from deployments.simulator.setup import SimulatorSettings

_STEP_S, _TOKEN_S = 0.05, 0.001
_SLOTS, _STEP_TOKENS, _MAX_LEN, _BLOCK = 32, 128, 2048, 16
_KV_TOKENS = _SLOTS * _MAX_LEN + _BLOCK
_TTFT_S, _TPOT_MS = 2.0, 200.0
_TINY_SLOTS = 2
# A simulated figure may lie so far beside those of live runs.
_SPREAD = 0.1
# Which engine dies and which one a request goes to is drawn anew in each simulation of a run.
_SEEDS = 3


def main(
    trace: Annotated[Path, typer.Argument(help="Recorded load, as bireme simulate takes it.")],
    begin: Annotated[float, typer.Option(help="Second of the recording to begin at.")] = 0.0,
    seconds: Annotated[float, typer.Option(help="How long a run's load lasts.")] = 300.0,
    speed: Annotated[float, typer.Option(help="So many times faster than recorded.")] = 144.0,
    length_scale: Annotated[float, typer.Option(help="Recorded lengths times this.")] = 0.25,
    engines_mean: Annotated[float, typer.Option(help="The oracle's mean engines, to which the load is scaled.")] = 1.2,
    least: Annotated[int, typer.Option(help="min_replicas; 0: the last engine goes, too.")] = 1,
    most: Annotated[int, typer.Option(help="max_replicas.")] = 4,
    runs: Annotated[int, typer.Option(min=0, help="Live runs.")] = 3,
    kills: Annotated[int, typer.Option(help="Engines that are killed in each run.")] = 0,
    tiny: Annotated[bool, typer.Option("--tiny", help="Engines compute a tiny model; nothing is simulated.")] = False,
    cost_weight: Annotated[float, typer.Option(help="Of the objectives.")] = 1.0,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(help="What --json wrote of runs under the same load, shown with those of this call."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
) -> None:
    """Measure, and print live runs and simulation side by side."""
    settings = _settings(least, most, cost_weight)
    load = _load(trace, settings, (begin, seconds, speed, length_scale, engines_mean))
    print(f"{len(load.at)} requests in {load.duration_s:.0f} s", flush=True)
    engines = TinyEngines(_tiny(settings)) if tiny else SimulatedEngines(_served(settings))
    lives = [_live(row) for path in earlier or () for row in json.loads(path.read_text())["live"]]
    for number in range(runs):
        lives.append(live := live_run(load, engines, kills))
        print(f"run {number + 1}: {_line(live)}", flush=True)
        print(*live.faults[:5], sep="\n", end="\n" if live.faults else "", flush=True)
    simulated = [] if tiny else [_simulate(load, settings, live, lives) for live in lives]
    _show(load, lives, simulated)
    if out is not None:
        rows = [{**asdict(live), "attainment": _attainment(live)} for live in lives]
        results = [[asdict(result) for result in results] for results in simulated]
        out.write_text(json.dumps({"live": rows, "simulated": results}))
    sys.exit(1 if any(live.faults for live in lives) else 0)


def _live(row: dict[str, Any]) -> Live:
    return Live(**{field.name: row[field.name] for field in fields(Live) if field.name in row})


def _settings(least: int, most: int, cost_weight: float) -> SimulatorSettings:
    policy = PolicySettings(
        min_replicas=least, max_replicas=most, slo_ttft_s=_TTFT_S, slo_tpot_ms=_TPOT_MS, cost_weight=cost_weight
    )
    costs = StepCosts(_STEP_S, _TOKEN_S, _TOKEN_S, 0.0)
    return SimulatorSettings(
        costs=costs,
        max_num_seqs=_SLOTS,
        max_num_batched_tokens=_STEP_TOKENS,
        max_model_len=_MAX_LEN,
        kv_tokens=_KV_TOKENS,
        block_size=_BLOCK,
        policy=policy,
    )


def _served(settings: SimulatorSettings) -> dict[str, Any]:
    """The same in the words of a configuration."""
    policy = settings.policy
    objectives = ("min_replicas", "max_replicas", "slo_ttft_s", "slo_tpot_ms", "cost_weight")
    return {
        "simulated_step_s": settings.costs.step,
        "simulated_token_s": settings.costs.prefill_token,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_model_len": settings.max_model_len,
        "num_kv_blocks": settings.kv_tokens // settings.block_size,
        "block_size": settings.block_size,
        "max_queued_requests": 1000,
        "runner_num_cpus": 0.1,
        "ingress_config": {"num_replicas": 1},
        "autoscaling": {name: getattr(policy, name) for name in objectives},
    }


def _tiny(settings: SimulatorSettings) -> dict[str, Any]:
    """For engines that compute: few slots, so that a small load fills them."""
    served = {name: value for name, value in _served(settings).items() if not name.startswith("simulated_")}
    return {**served, "max_num_seqs": _TINY_SLOTS, "num_kv_blocks": 512}


def _load(trace: Path, settings: SimulatorSettings, how: tuple[float, float, float, float, float]) -> Arrivals:
    begin, seconds, speed, length_scale, engines_mean = how
    recorded = single_requests(arrivals_of(read_trace(trace, begin, seconds * speed), settings), settings)
    faster = replace(
        recorded,
        at=(recorded.at - recorded.at.min()) / speed,
        prompt=np.maximum(1, np.round(recorded.prompt * length_scale)),
        output=np.maximum(2, np.round(recorded.output * length_scale)),
        duration_s=seconds,
    )
    return scaled(faster, factor_for(faster, settings, engines_mean), settings)


def _simulate(load: Arrivals, settings: SimulatorSettings, live: Live, lives: Sequence[Live]) -> list[Result]:
    """With the deaths of ``live``, and the starts and replacements of all runs. As there, a policy that knows nothing is asked
    for a while before the load begins."""
    starts = tuple(second for one in lives for second in one.start_times_s) or settings.start_times_s
    replaced = tuple(second for one in lives for second in one.replace_times_s)
    later = replace(load, at=load.at + live.idle_s, duration_s=load.duration_s + live.idle_s)
    deaths = [event_of_pairs(f"at={live.idle_s + second:.1f} event=death engines=1") for second in live.killed_at]
    found = []
    for seed in range(_SEEDS):
        drawn = replace(settings, start_times_s=starts, replace_times_s=replaced, seed=seed)
        scaler, initial = PolicyScaler(drawn), settings.policy.min_replicas
        result = simulate_requests(later, drawn, scaler, initial, events=deaths, make=ExactEngine, ran_before=False)
        sizes = [(second - live.idle_s, count) for second, count in result.engines]
        found.append(replace(result, engines=sizes))
    return found


def _attainment(live: Live) -> float:
    met = [t <= _TTFT_S and p <= _TPOT_MS / 1e3 for t, p in zip(live.ttft_s, live.tpot_s)]
    return sum(met) / max(len(met), 1)


def _times(live: Live) -> dict[str, float]:
    found = np.array(live.ttft_s)
    return percentiles(found[~np.isnan(found)])


def _line(live: Live) -> str:
    return (
        f"{len(live.ttft_s)} requests, {len(live.faults)} faults, {len(live.killed_at)} engines killed, starts "
        + ", ".join(f"{second:.1f}" for second in live.start_times_s)
        + " s, engines wanted "
        + ", ".join(f"{count} at {second:.0f} s" for second, count in live.targets)
    )


def _counts(sizes: Sequence[tuple[float, int]], seconds: int) -> list[int]:
    """Engines in each second; before the first change those of the first."""
    return [([count for at, count in sizes if at <= second] or [sizes[0][1]])[-1] for second in range(seconds)]


def _near(live: Live, results: Sequence[Result], seconds: int) -> str:
    """Of the seconds, those in which a simulation of the run had as many engines but for one."""
    if not results:
        return ""
    counts = _counts(live.targets, seconds)
    near = [abs(a - b) <= 1 for one in results for a, b in zip(counts, _counts(one.engines, seconds))]
    return f"{sum(near) / len(near):.1%}"


def _show(load: Arrivals, lives: Sequence[Live], simulated: Sequence[Sequence[Result]]) -> None:
    seconds = int(load.duration_s)
    table = Table(
        "", "TTFT p50", "p95", "within the objectives", "engines at most", "engine-hours", "within one engine"
    )

    def row(name: str, times: dict[str, float], attained: float, sizes: Sequence[tuple[float, int]], near: str) -> None:
        counts = _counts(sizes, seconds)
        shown = [f"{times['p50']:.3f} s", f"{times['p95']:.3f} s", f"{attained:.2%}", str(max(counts))]
        table.add_row(name, *shown, f"{sum(counts) / 3600:.3f}", near)

    for number, live in enumerate(lives):
        results = simulated[number] if simulated else ()
        row(f"live {number + 1}", _times(live), _attainment(live), live.targets, _near(live, results, seconds))
        for result in results:
            row(f"simulated {number + 1}", result.ttft_s, result.attainment, result.engines, "")
    Console(width=150).print(table)
    for name in ("p50", "p95") if simulated else ():
        found = [_times(live)[name] for live in lives]
        low, high = (1 - _SPREAD) * min(found), (1 + _SPREAD) * max(found)
        middle = float(np.median([result.ttft_s[name] for results in simulated for result in results]))
        verdict = "within" if low <= middle <= high else "outside"
        print(f"TTFT {name}: simulated {middle:.3f} s (median) is {verdict} {low:.3f} to {high:.3f} s")


if __name__ == "__main__":
    typer.run(main)
