"""``bireme simulate`` and ``bireme plan``: what recorded load costs under the scaling policy, without a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from cluster.errors import BiremeError
from cluster.scaling.capacity import PRIOR_COSTS
from cluster.terminal.app import app, console, errors, show_error
from deployments.simulator.events import event_of_pairs, in_order, read_events, read_start_times
from deployments.simulator.setup import FIDELITIES, SimulatorSettings

if TYPE_CHECKING:
    from deployments.simulator.fleet_plan import FleetPlan
    from deployments.simulator.result import Result
    from deployments.simulator.study import Progress, Study

_Trace = Annotated[
    Path, typer.Argument(metavar="FILE", help="Recorded load: Azure's CSV, Mooncake's JSON lines or ServeGen's rates.")
]
_Config = Annotated[Path | None, typer.Option(help="JSON with settings of the simulator; docs/simulate.md has them.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def simulate(
    trace: _Trace,
    config: _Config = None,
    as_json: _Json = False,
    engines_mean: Annotated[
        float, typer.Option(min=0, help="Scale the load so that the oracle's mean is this; 0 leaves it as it is.")
    ] = 12.0,
    compare: Annotated[bool, typer.Option("--compare", help="Other rules and a schedule of the future, too.")] = False,
    fidelity: Annotated[
        str,
        typer.Option(
            help="fluid: steps by the capacity model. exact: the real scheduler, to 20,000 requests, 50 engines."
        ),
    ] = "fluid",
    begin: Annotated[float, typer.Option(min=0, help="Second of the recording to begin at.")] = 0.0,
    seconds: Annotated[float | None, typer.Option(min=1, help="Take so many seconds of the recording.")] = None,
    events: Annotated[
        Path | None, typer.Option(help="JSON lines of what happens to engines, nodes, controller.")
    ] = None,
    event: Annotated[
        list[str] | None, typer.Option(help="One event, as 'at=600 event=death engines=2'; can be repeated.")
    ] = None,
    start_times: Annotated[Path | None, typer.Option(help="Measured seconds that starts took, one a line.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw engines and attainment over time into this file.")] = None,
) -> None:
    """Run the scaling policy on recorded load under a virtual clock: attainment, engine-hours, and the oracle's."""
    with _one_line_errors():
        settings = _settings(config)
        if start_times is not None:
            settings = replace(settings, start_times_s=read_start_times(start_times))
        if fidelity not in FIDELITIES:
            raise BiremeError(f"--fidelity: got {fidelity!r}, allowed: {', '.join(FIDELITIES)}", "--fidelity")
        happens = in_order([*(read_events(events) if events else ()), *map(event_of_pairs, event or ())])
        study = _study(trace, settings, engines_mean, fidelity, happens, (begin, seconds))
        results: dict[str, Result | None] = {}
        with _bar(as_json) as told:
            results["this policy"] = ours = study.run(progress=told("this policy"))
            if compare:
                for name, scaler in study.others().items():
                    results[name] = study.run(scaler, told(name))
                results["schedule of the future"] = study.upper_bound(told("schedule of the future"))
    if svg is not None:
        with _one_line_errors():
            _draw(svg, study, {name: result for name, result in results.items() if result is not None})
    if as_json:
        found = study.report(ours)
        if compare:
            found["compared"] = {
                name: {"attainment": r.attainment, "engine_hours": r.engine_hours} for name, r in results.items() if r
            }
        console.print(json.dumps(found), highlight=False, markup=False, soft_wrap=True)
        return
    console.print(
        f"{ours.requests:,.0f} requests in {study.load.duration_s / 3600:.2f} h, load × {study.factor:.4g}; objectives: "
        f"TTFT {settings.policy.slo_ttft_s:g} s, TPOT {settings.policy.slo_tpot_ms:g} ms",
        highlight=False,
        markup=False,
    )
    console.print(_table(study, results))


@app.command()
def plan(
    trace: _Trace,
    slo: Annotated[list[str] | None, typer.Option(help="ttft_s=2, tpot_ms=100 or share=0.99; can be repeated.")] = None,
    price: Annotated[float, typer.Option(min=0, help="Of an engine for an hour.")] = 0.0,
    config: _Config = None,
    as_json: _Json = False,
) -> None:
    """How many engines recorded load needs as it is, and what they cost: a fixed fleet, the policy, the oracle."""
    with _one_line_errors():
        settings = _with_slo(_settings(config), slo or [])
        study = _study(trace, settings, None)
        with _bar(as_json) as told:
            found = _planned(study, told)
    ours, rows, share = found.policy, found.engine_hours, settings.policy.slo_share
    fixed = found.fixed.peak_engines if found.fixed else None
    if as_json:
        shown: dict[str, Any] = {
            "fixed_engines": fixed,
            "peak_engines": ours.peak_engines,
            "attainment": ours.attainment,
            "span_s": found.span_s,
            "engine_hours": rows,
            "mean_engines": found.mean_engines,
            "cost": {name: value * price for name, value in rows.items()},
        }
        console.print(json.dumps(shown), highlight=False, markup=False, soft_wrap=True)
        return
    table = Table("", "engine-hours", "mean engines", "cost")
    for name, value in rows.items():
        mean = f"{found.mean_engines[name]:.2f}"
        # A recording of minutes costs hundredths of an hour.
        table.add_row(name, f"{value:.{2 if value >= 1 else 4}f}", mean, f"{value * price:.2f}" if price else "–")
    console.print(table)
    sizes = (
        f"a fixed fleet needs {fixed} engine{'s' if fixed != 1 else ''}"
        if fixed is not None
        else "no fixed fleet of twice the peak is enough"
    )
    said = f"{sizes}; the policy has {ours.peak_engines} at most, and {ours.attainment:.2%} within the objectives"
    missed = "" if ours.attainment >= share else f", less than the {100 * share:g}% that are wanted"
    console.print(said + missed, highlight=False, markup=False, soft_wrap=True)


def _study(trace: Path, settings: SimulatorSettings, *how: Any) -> Study:
    from deployments.simulator.study import Study  # loads NumPy, which no other command needs

    return Study(trace, settings, *how)


def _planned(study: Study, told: Callable[[str], Progress]) -> FleetPlan:
    from deployments.simulator.fleet_plan import planned

    return planned(study, told)


def _draw(file: Path, study: Study, results: dict[str, Result]) -> None:
    from deployments.simulator.picture import draw

    try:
        file.write_text(
            draw(results, study.bound, study.load.duration_s, study.settings.policy.slo_share), encoding="utf-8"
        )
    except OSError as error:
        raise BiremeError(f"{file}: {error.strerror}", "--svg") from None


def _table(study: Study, results: dict[str, Result | None]) -> Table:
    table = Table("", "attainment", "TTFT p50 / p95 s", "TPOT p95 ms", "engine-hours", "over oracle", "peak")
    for name, result in results.items():
        if result is None:
            table.add_row(name, *["–"] * 6)
            continue
        table.add_row(
            name,
            f"{result.attainment:.2%}",
            f"{result.ttft_s.get('p50', 0):.2f} / {result.ttft_s.get('p95', 0):.2f}",
            f"{result.tpot_ms.get('p95', 0):.0f}",
            f"{result.engine_hours:.2f}",
            f"{result.engine_hours / max(study.bound.engine_hours, 1e-9):.3f}",
            str(result.peak_engines),
        )
    table.add_row("oracle", "–", "–", "–", f"{study.bound.engine_hours:.2f}", "1.000", "–")
    return table


def _settings(file: Path | None) -> SimulatorSettings:
    if file is None:
        return SimulatorSettings()
    try:
        given = msgspec.json.decode(file.read_bytes())
        if not isinstance(given, dict):
            raise BiremeError(f"{file}: want an object of settings", "--config")
        default = msgspec.to_builtins(SimulatorSettings())
        unknown = sorted(given.keys() - default.keys())
        if unknown:
            raise BiremeError(f"{file}: {unknown[0]} is no setting; allowed: {', '.join(default)}", "--config")
        policy = {**default["policy"], **given.pop("policy", {})}
        for found in (given, policy):
            if isinstance(costs := found.get("costs"), dict):
                found["costs"] = _costs(costs, file)
        settings = msgspec.convert({**default, **given, "policy": policy}, SimulatorSettings)
    except OSError as error:
        raise BiremeError(f"{file}: {error.strerror}", "--config") from None
    except (msgspec.MsgspecError, TypeError) as error:
        raise BiremeError(f"{file}: {error}", "--config") from None
    lowest, highest = settings.policy.min_replicas, settings.policy.max_replicas
    if not 0 <= lowest <= highest:
        raise BiremeError(
            f"{file}: policy.min_replicas ({lowest}) must be at least 0 and at most policy.max_replicas ({highest})",
            "--config",
        )
    return settings


def _costs(given: dict[str, Any], file: Path) -> list[Any]:
    """Those that are not given are the defaults'."""
    default = PRIOR_COSTS._asdict()
    if unknown := sorted(given.keys() - default.keys()):
        raise BiremeError(f"{file}: costs.{unknown[0]} is no cost; allowed: {', '.join(default)}", "--config")
    return list({**default, **given}.values())


def _with_slo(settings: SimulatorSettings, given: list[str]) -> SimulatorSettings:
    changes: dict[str, Any] = {}
    for part in " ".join(given).replace(",", " ").split():
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name not in ("ttft_s", "tpot_ms", "share") or number <= 0 or (name == "share" and number >= 1):
            raise BiremeError(f"--slo: got {part!r}, allowed: ttft_s=, tpot_ms= and share= with a number", "--slo")
        changes[f"slo_{name}"] = number
    return replace(settings, policy=replace(settings.policy, **changes))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except BiremeError as error:
        show_error(error)
        raise typer.Exit(1) from None


@contextmanager
def _bar(is_quiet: bool) -> Iterator[Any]:
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn()
    with Bar(*columns, console=errors, disable=is_quiet and not errors.is_terminal, transient=True) as bar:

        def told(name: str) -> Progress:
            task = bar.add_task(name, total=1.0)
            return lambda share: bar.update(task, completed=share)

        yield told
