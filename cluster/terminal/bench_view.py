"""How ``bireme bench`` shows a run, and two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.bench.compare import compare, differences

_BUSY = 0.8
_LATE_MS = 10.0


def latency_table(run: dict[str, Any]) -> Table:
    """Latencies of a run."""
    table = Table("milliseconds", "mean", "p50", "p95", "p99", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    names = {
        "ttft": "first token (TTFT)",
        "tpot": "per token (TPOT)",
        "itl": "between events (ITL)",
        "e2el": "whole answer",
    }
    for key, name in names.items():
        values = [run[f"{kind}_{key}_ms"] for kind in ("mean", "median", "p95", "p99")]
        table.add_row(name, *("–" if value is None else f"{value:,.2f}" for value in values))
    return table


def lines(run: dict[str, Any]) -> list[str]:
    """What else a run has, a line each."""
    cut = f", {run['unfinished']:,} cut at the end" if run["unfinished"] else ""
    throughput = f"{run['request_throughput']:,.2f} requests/s, {run['output_throughput']:,.1f} output tokens/s"
    found = [
        f"{run['completed']:,} requests in {run['duration']:.1f} s, {run['failed']:,} errors{cut}",
        f"{throughput}, {run['total_token_throughput']:,.1f} with prompts",
        f"{run['total_input_tokens']:,} prompt tokens{_cached(run)}, {run['total_output_tokens']:,} output tokens",
    ]
    if (share := run.get("slo_share")) is not None:
        found.append(f"{100 * share:.1f} % within the targets, {run['request_goodput']:.2f} requests/s")
    return found


def warnings(run: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the figures."""
    found = [f"{count} × {error}" for error, count in list(run["errors"].items())[:5]]
    if run["warm_up_errors"]:
        found.append(f"{run['warm_up_errors']} warm-up requests failed")
    if run["unfinished"] > run["completed"]:
        # What was ended by hand would not have gone on for longer with more time.
        advice = "let it run for longer" if run["stopped"] else "raise --max-seconds"
        found.append(f"most answers were cut at the end, and count nowhere; {advice}")
    busiest = max(run["client_cpu_shares"], default=0.0)
    if busiest > _BUSY:
        found.append(
            f"the client itself was busy ({100 * busiest:.0f} % of a core): times may be its own; raise --processes"
        )
    late = run["p99_late_ms"]
    if run["config"].get("max_concurrency") is None and late is not None and late > _LATE_MS:
        found.append(f"requests left late (p99 {late:.0f} ms): the client could not keep the rate; raise --processes")
    if run["completed"] and run["total_output_tokens"] < 0.95 * run["wanted_output_tokens"]:
        found.append(
            f"answers ended early ({run['total_output_tokens']:,} of {run['wanted_output_tokens']:,} tokens); "
            "--ignore-eos keeps their lengths, where the server knows it"
        )
    return found


def _cached(run: dict[str, Any]) -> str:
    cached = run["total_cached_tokens"]
    return "" if cached is None else f" ({cached:,} from its cache)"


def comparison_table(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str]) -> Table:
    """Two runs, figure by figure."""
    table = Table("", *names, "change", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in compare(first, second):
        style = {True: "green", False: "red", None: ""}[row.is_better]
        change = "" if row.change is None else f"{100 * row.change:+.1f} %"
        table.add_row(
            row.name, _number(row.first), _number(row.second), f"[{style}]{change}" if style and change else change
        )
    return table


def difference_lines(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What was asked for differently."""
    return [f"{name}: {a!r} and {b!r}" for name, a, b in differences(first, second)]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def short_names(first: Path, second: Path) -> tuple[str, str]:
    """Names of two files, short where that tells them apart."""
    if first.stem != second.stem:
        return first.stem, second.stem
    return str(first), str(second)
