"""What the serving plane costs: engines that compute nothing, behind the real replicas, ingresses and proxy.

    python -m benchmarks.serving.bench_plane [--streams 1 64 128 512] [--engines 1] [--ingresses 1] [--step-ms 5] [--json FILE]

Clients are a closed loop. Each number of streams is measured with long and with short answers: the two tell CPU time per token
from CPU time per request, where it is more than what idle processes use in one window and not in another ("too few" where it is
not). Shared cores disturb waits, and hardly CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.loads import Tokens, checked, closed_loop
from benchmarks.serving.process_cpu import clock_step_s, cpu_by_kind
from benchmarks.serving.served_app import ServedApp, settings_config
from cluster.bench.processes import LoadProcesses, Result

# What is shown of each load: kinds of processes.
_SHOWN = {kind: (kind,) for kind in ("proxy", "ingress", "replica", "runner", "client")} | {
    "proxy + ingress": ("proxy", "ingress")
}
_RAMP_S = 1.5
# Engines are asked one after the other, so a window is much longer than that takes.
_WINDOW_S = 2.0
_IDLE_WINDOWS = 3
# No load repeats the prompts of another.
_seeds: list[int] = []


@dataclass(frozen=True)
class Idle:
    """What processes use while nobody asks for anything.

    Attributes:
        cpu: CPU seconds a second, by kind.
        spread_s: CPU seconds by which windows of ``window_s`` differed, by kind.
        step_s: what the clock cannot tell apart.
    """

    cpu: Counter[str]
    spread_s: dict[str, float]
    window_s: float
    step_s: float

    def noise_s(self, kind: str, seconds: float) -> float:
        """CPU seconds that say nothing in a window of so many: what comes now and then differs by the root of its number."""
        return self.step_s + self.spread_s.get(kind, 0.0) * (seconds / self.window_s) ** 0.5


@dataclass
class Row:
    """One load.

    Attributes:
        tokens_per_s, chunks_per_s, answers_per_s: what came to the clients.
        first_ms, gap_ms: p50 and p95.
        cpu_us: microseconds of CPU time a second, by kind of process, more than idle ones use.
        noise_us: of these, what may be no work of this load.
        engine_shares: the least and the most that an engine made in two seconds, of what all made on average; 1 for one engine.
    """

    streams: int
    answer_tokens: int
    tokens_per_s: float
    chunks_per_s: float
    answers_per_s: float
    first_ms: tuple[float, float]
    gap_ms: tuple[float, float]
    cpu_us: dict[str, float]
    noise_us: dict[str, float]
    engine_shares: tuple[float, float]


def idle_cpu(app: ServedApp, seconds: float) -> Idle:
    """What they use in ``seconds``, in which nobody must ask for anything."""
    window_s = seconds / _IDLE_WINDOWS
    seen, moments = [cpu_by_kind(app.process_group)], [time.perf_counter()]
    for _ in range(_IDLE_WINDOWS):
        time.sleep(window_s)
        seen.append(cpu_by_kind(app.process_group))
        moments.append(time.perf_counter())
    spent = {kind: np.diff([cpu[kind] for cpu in seen]) for kind in seen[-1]}
    lasted = moments[-1] - moments[0]
    return Idle(
        Counter({kind: float(windows.sum()) / lasted for kind, windows in spent.items()}),
        {kind: float(np.ptp(windows)) for kind, windows in spent.items()}, lasted / _IDLE_WINDOWS, clock_step_s(),
    )  # fmt: skip


def measure(
    app: ServedApp,
    clients: LoadProcesses,
    streams: int,
    tokens: tuple[Tokens, Tokens],
    seconds: float,
    idle: Idle,
) -> Row:
    """One load, of which ``seconds`` count; what processes take while they are ``idle`` does not."""
    _seeds.append(len(_seeds))
    clients.start(closed_loop(app, streams, tokens, seed=_seeds[-1], seconds=_RAMP_S + seconds))
    time.sleep(_RAMP_S)
    before, begin = cpu_by_kind(app.process_group), time.perf_counter()
    shares = _engine_shares(app, seconds)
    after, end = cpu_by_kind(app.process_group), time.perf_counter()
    result, lasted = checked(clients.result()), end - begin
    cpu = Counter({kind: after[kind] - before[kind] - idle.cpu[kind] * lasted for kind in after})
    cpu["client"] = sum(result.cpu_shares) * lasted
    first, gaps, chunks, answers = _between(result, begin, end)
    whole = [sample for sample in result.samples if sample.is_whole]
    tokens_a_chunk = sum(s.output_tokens for s in whole) / max(1, sum(len(s.arrivals) for s in whole))
    return Row(
        streams, round(np.mean(tokens[1])), chunks * tokens_a_chunk / lasted, chunks / lasted, answers / lasted,
        _quantiles_ms(first), _quantiles_ms(gaps), {kind: 1e6 * spent / lasted for kind, spent in cpu.items()},
        {kind: 1e6 * idle.noise_s(kind, lasted) / lasted for kind in cpu}, shares,
    )  # fmt: skip


def _engine_shares(app: ServedApp, seconds: float) -> tuple[float, float]:
    """Wait so long, and see meanwhile how even the engines' tokens are."""
    until, shares, before = time.perf_counter() + seconds, [1.0], _tokens_made(app)
    while (left := until - time.perf_counter()) > 0:
        time.sleep(min(_WINDOW_S, left))
        if len(before) < 2 or left < _WINDOW_S:
            continue
        now = _tokens_made(app)
        made = np.array([now[engine] - tokens for engine, tokens in before.items() if engine in now])
        shares += (made / max(1.0, made.mean())).tolist()
        before = now
    return min(shares), max(shares)


def _tokens_made(app: ServedApp) -> dict[str, int]:
    return {engine["engine_id"]: engine["num_generated_tokens"] for engine in app.engines()}


def _between(result: Result, begin: float, end: float) -> tuple[np.ndarray, np.ndarray, int, int]:
    """What came between two moments: seconds to first tokens, seconds between reads of an answer, events, ends of answers."""
    first: list[float] = []
    gaps, chunks, answers = [np.array([])], 0, 0
    for sample in result.samples:
        came = np.frombuffer(sample.arrivals)
        counted = came[(came >= begin) & (came < end)]
        chunks += len(counted)
        gaps.append(np.diff(np.unique(counted)))
        if len(came) and begin <= sample.asked and came[0] < end:
            first.append(came[0] - sample.asked)
        answers += sample.is_whole and begin <= sample.end < end
    return np.array(first), np.concatenate(gaps), chunks, answers


def _quantiles_ms(seconds: np.ndarray) -> tuple[float, float]:
    if not len(seconds):
        return float("nan"), float("nan")
    p50, p95 = np.quantile(seconds, (0.5, 0.95))
    return 1e3 * float(p50), 1e3 * float(p95)


def costs(long: Row, short: Row) -> dict[str, tuple[float | None, float | None]]:
    """CPU microseconds (of a token, of a request) by kind, both loads cost the sum of the two; None: not more than noise."""
    loads = np.array([[row.tokens_per_s, row.tokens_per_s / row.answer_tokens] for row in (long, short)])
    shares = np.linalg.inv(loads)  # of each load in the cost of a token, and in that of a request
    found = {}
    for name, kinds in _SHOWN.items():
        cpu, noise = (
            np.array([sum(of.get(kind, 0.0) for kind in kinds) for of in both])
            for both in ((long.cpu_us, short.cpu_us), (long.noise_us, short.noise_us))
        )
        token, request = (
            float(cost) if cost > error else None for cost, error in zip(shares @ cpu, np.abs(shares) @ noise)
        )
        found[name] = token, request
    return found


def report(rows: list[tuple[Row, Row]]) -> list[str]:
    """Lines of two Markdown tables."""
    lines = [
        "| streams | tokens/s | tokens a chunk | first token, ms (p50, p95) | gap, ms (p50, p95) | shares of engines |",
        "|" + "---|" * 6,
    ]
    for long, _ in rows:
        merged = long.tokens_per_s / max(1.0, long.chunks_per_s)
        lines.append(
            f"| {long.streams} | {long.tokens_per_s:,.0f} | {merged:.2f} | {long.first_ms[0]:.1f}, {long.first_ms[1]:.1f} "
            f"| {long.gap_ms[0]:.1f}, {long.gap_ms[1]:.1f} | {long.engine_shares[0]:.2f} to {long.engine_shares[1]:.2f} |"
        )
    shown = " | ".join(_SHOWN)
    lines += ["", f"| streams | µs a token: {shown} | µs a request: {shown} |"]
    lines.append("|" + "---|" * (1 + 2 * len(_SHOWN)))
    for long, short in rows:
        values = [value[part] for part in (0, 1) for value in costs(long, short).values()]
        cells = ["too few" if value is None else f"{value:,.0f}" for value in values]
        lines.append(f"| {long.streams} | {' | '.join(cells)} |")
    return lines


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Of the application that is measured."""
    return {
        "device": "simulated",
        "simulated_step_s": options.step_ms / 1e3,
        "max_num_seqs": options.slots,
        "max_queued_requests": 4096,
        "max_model_len": 2048,
        "runner_num_cpus": 0.05,
        "deployment_config": {"num_replicas": options.engines, "ray_actor_options": {"num_cpus": 0.01}},
        "ingress_config": {"num_replicas": options.ingresses, "ray_actor_options": {"num_cpus": 0.01}},
        **dict(options.set),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 128, 512])
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--ingresses", type=int, default=1)
    parser.add_argument("--slots", type=int, default=512, help="sequences of an engine at a time")
    parser.add_argument("--step-ms", type=float, default=5.0)
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--answers", type=int, nargs=2, default=[256, 16], help="tokens of long and short answers")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load")
    parser.add_argument(
        "--clients", type=int, default=max(1, min(16, len(os.sched_getaffinity(0)) // 2)), help="processes"
    )
    parser.add_argument("--rounds", type=int, default=1, help="of which medians are shown")
    parser.add_argument("--set", type=_setting, nargs="*", default=[], metavar="NAME=VALUE", help="settings besides")
    parser.add_argument("--json", type=Path, help="file for all rows")
    parser.add_argument("--log", default=os.path.join(tempfile.gettempdir(), "bireme-plane.log"))
    options = parser.parse_args()
    app = ServedApp(settings_config(settings(options)), options.log)
    clients = LoadProcesses(options.clients)
    try:
        idle = idle_cpu(app, _IDLE_WINDOWS * options.seconds)
        rounds = [
            [
                tuple(
                    measure(app, clients, streams, (options.prompt, answer), options.seconds, idle)
                    for answer in options.answers
                )
                for streams in options.streams
            ]
            for _ in range(options.rounds)
        ]
    finally:
        clients.close()
        app.close()
    rows = [tuple(map(_median, zip(*pairs))) for pairs in zip(*rounds)]
    print(
        f"{len(os.sched_getaffinity(0))} cores; {options.engines} simulated engines, {options.ingresses} ingresses, "
        f"steps of {options.step_ms:g} ms, {options.prompt} → {options.answers[0]} tokens, "
        f"{options.rounds} rounds of {options.seconds:g} s"
    )
    print("\n".join(report(rows)))
    if options.json:
        options.json.write_text(json.dumps([[asdict(row) for row in pair] for pair in rows]))


def _median(rows: tuple[Row, ...]) -> Row:
    """Of each figure by itself."""

    def of(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: statistics.median(value.get(key, 0.0) for value in values) for key in values[0]}
        if isinstance(values[0], tuple):
            return tuple(map(statistics.median, zip(*values)))
        return statistics.median(values)

    return Row(**{name: of([vars(row)[name] for row in rows]) for name in vars(rows[0])})


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    main()
