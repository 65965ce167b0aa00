"""``bireme autoscale``: the scaling policy of a running application, what it decided last, and other objectives for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.config import Autoscaling
from cluster.errors import BiremeError
from cluster.terminal.app import app, console, errors, show_error
from deployments.start.app_arguments import decoded
from deployments.start.ray_session import ray_base
from deployments.start.run_files.past_sessions import (
    head_address,
    is_running,
    joined_address,
    on_port,
    others_note,
    sessions,
)

_IN_FORCE_S = 10.0
_POLL_S = 0.1


@app.command()
def autoscale(
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="Settings of autoscaling that are to be in force from now on, e.g. slo_ttft_s=1.5; none: show them.",
        ),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Back to what the configuration says.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    replay: Annotated[
        Path | None, typer.Option(help="Decide again what this log of decisions holds, and say where it differs.")
    ] = None,
    application: Annotated[str | None, typer.Option("--app", help="Application, where there are several.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of the server whose API is on this port.")] = None,
    address: Annotated[
        str | None, typer.Option(help="host:port of the head of a Ray cluster.", envvar="RAY_ADDRESS")
    ] = None,
) -> None:
    """Show the scaling policy's settings and its last decision, or change settings without restarting an engine."""
    try:
        if replay is not None:
            _replay(replay, as_json)
            return
        given = _changes(changes or [])
        found = _Running(_head(port) if address in (None, "local", "auto") else str(address), application)
        if given or reset:
            found.change(given, reset)
        _show(found.latest(), as_json)
    except BiremeError as error:
        show_error(error)
        raise typer.Exit(1) from None


def _changes(items: list[str]) -> dict[str, Any]:
    changes = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise BiremeError(f"{item!r} is no setting of the form NAME=VALUE")
        changes[name.replace("-", "_").removeprefix("autoscaling.")] = decoded(value)
    return changes


def _head(port: int | None) -> str:
    """host:port of the head of the server that was started last here, or of the one whose API is on ``port``."""
    known = sessions(ray_base())
    for session in on_port(known, port):
        if is_running(session) and (address := head_address(session)) is not None:
            if port is None and (note := others_note(session, known)):
                errors.print(note, style="yellow", highlight=False, markup=False)
            return address
    # As ray start left it, which a server of this machine's own never does.
    if port is None and (address := joined_address()):
        return address
    raise BiremeError("no server of yours runs on this machine; bireme serve starts one, --address names a cluster")


class _Running:
    """The policy of a running application, seen through the key-value store of Ray's head.

    Args:
        head: host:port of it.
        application: None: the one there is.
    """

    def __init__(self, head: str, application: str | None) -> None:
        # Ray takes a second to import.
        from deployments.autoscaling.store import ScalingStore, applications
        from deployments.ray_private.serve import gcs_client

        try:
            client = gcs_client(head)
            known = applications(client)
        except Exception as error:
            raise BiremeError(f"Ray's head at {head} does not answer: {type(error).__name__}: {error}") from None
        if application is None and len(known) > 1:
            raise BiremeError(f"--app: there are several applications: {', '.join(known)}", "app")
        if not known or application not in (None, *known):
            named = "" if application is None else f" called {application}"
            raise BiremeError(
                f"no application{named} has a scaling policy; autoscaling.max_replicas=4 gives it one"
                + (f"; those that have: {', '.join(known)}" if known else "")
            )
        self._store = ScalingStore(application or known[0], client)

    def latest(self) -> dict[str, Any]:
        """What the policy said last."""
        from deployments.autoscaling.store import LATEST

        text = self._store.get(LATEST)
        if text is None:
            raise BiremeError("the application has gone meanwhile")
        return json.loads(text)

    def change(self, changes: dict[str, Any], reset: bool) -> None:
        """Have the policy go on with other settings, and return when it does.

        Raises:
            BiremeError: they are not valid, or the policy does not take them up in time.
        """
        from deployments.autoscaling.live_settings import changed, changes_entry
        from deployments.autoscaling.store import SETTINGS

        latest = self.latest()
        line = Autoscaling.model_validate(latest["line"])
        before = line if reset else Autoscaling.model_validate(latest["settings"])
        wanted = changed(before, changes, line)
        self._store.put(SETTINGS, changes_entry(line, wanted))
        deadline = time.monotonic() + _IN_FORCE_S
        while self.latest()["settings"] != wanted.model_dump(mode="json"):
            if time.monotonic() > deadline:
                raise BiremeError("the settings are kept, but Serve's controller has not taken them up yet")
            time.sleep(_POLL_S)


def _show(latest: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(json.dumps(latest))
        return
    for line in lines_of(latest, time.time()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def lines_of(latest: dict[str, Any], now: float) -> Iterator[str]:
    """What the policy said last, for a person."""
    line, settings = latest["line"], latest["settings"]
    for name, value in settings.items():
        was = "" if value == line[name] else f"  (configured: {_text(line[name])})"
        yield f"{name:<13} {_text(value)}{was}"
    yield f"{'engines':<13} {latest['running']} running, {latest['target']} wanted"
    yield f"{'why':<13} {latest['reason']}"
    yield f"{'decided':<13} {max(0.0, now - latest['at']):.1f} s ago, number {latest['sequence']}"
    if latest.get("log"):
        yield f"{'log':<13} {latest['log']}"


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def _replay(file: Path, as_json: bool) -> None:
    from cluster.scaling.log import replay

    try:
        with open(file, "rb") as lines:
            result = replay(lines)
    except OSError as error:
        raise BiremeError(f"--replay: {file}: {error.strerror or error}") from None
    if as_json:
        console.print_json(json.dumps(result.as_json()))
    else:
        for line in result.lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if result.differences:
        raise typer.Exit(1)
