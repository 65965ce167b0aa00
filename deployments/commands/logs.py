"""``bireme logs``: what servers of this user wrote, also after they ended."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.client import Client
from cluster.client.base import DEFAULT_URL
from cluster.errors import BiremeError
from cluster.terminal.app import ApiKey, Url, app, console, errors, show_error
from deployments.start.ray_session import ray_base
from deployments.start.run_files.past_sessions import (
    FollowedLogs,
    follow,
    is_running,
    known_sessions,
    log_files,
    on_port,
    others_note,
)

_ASK_TIMEOUT_S = 5.0


@app.command()
def logs(
    engine: Annotated[
        str | None,
        typer.Option(help="Only files in which this engine (bireme status) is named: its runner's, its replica's."),
    ] = None,
    follow_on: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until Ctrl-C.")] = False,
    back: Annotated[int, typer.Option(min=0, help="So many servers back; 0: the one that was started last.")] = 0,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Only servers whose API is or was on this port.")
    ] = None,
    files: Annotated[bool, typer.Option("--files", help="Paths instead of lines.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show what the server that was started last on this machine wrote, file by file; with --engine, the one that runs it.

    On a node of a cluster that was begun with ray start these are the logs of that node. Of an engine on another node --url
    is asked where they are.
    """
    try:
        base = ray_base()
        known = known_sessions(base)
        found = on_port(known, port)
        if back >= len(found):
            if engine and (elsewhere := _where(engine, url, api_key)):
                raise BiremeError(elsewhere)
            raise BiremeError(_too_few(f"{base}/ray", len(found), back, port))
        session = found[back]
        if engine and not back:
            running = [one for one in found if one == session or is_running(one)]
            session = next((one for one in running if log_files(one, engine)), session)
        if not (port or engine) and session == known[0] and (note := others_note(session, known)):
            errors.print(note, style="yellow", highlight=False, markup=False)
        paths = log_files(session, engine)
        elsewhere = _where(engine, url, api_key) if engine and not paths else None
        if elsewhere or not (paths or follow_on):
            what = f"names engine {engine!r}" if engine else "is there"
            raise BiremeError(elsewhere or f"no log {what} in {session}/logs; --back 1 looks at the server before")
    except BiremeError as error:
        show_error(error)
        raise typer.Exit(1) from None
    if files:
        for path in paths:
            console.print(str(path), highlight=False, markup=False, soft_wrap=True)
        return
    reader = FollowedLogs()
    shown = None
    try:
        for path, line in follow(session, engine, reader) if follow_on else reader.new_lines(paths):
            if path != shown:
                console.print(f"==> {path}", style="dim", highlight=False, markup=False, soft_wrap=True)
                shown = path
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _where(engine: str, url: str, api_key: str | None) -> str | None:
    """Where the server at ``url`` says that the engine's log is; None if it knows no such engine, or is not there."""
    try:
        with Client(url, api_key=api_key, timeout=_ASK_TIMEOUT_S) as client:
            found = [one for one in client.status()["engines"] if engine in one["engine_id"] and "log" in one]
    except BiremeError:
        return None
    if not found:
        return None
    return (
        f"{found[0]['engine_id']} runs on node {found[0]['node_ip']}; its log there is {found[0]['log']} in session_latest/logs, "
        f"and bireme logs --engine {engine} "
        "shows it on that node"
    )


def _too_few(folder: str, num_found: int, back: int, port: int | None) -> str:
    where = f"{f'on port {port} ' if port else ''}in {folder}; RAY_TMPDIR and TMPDIR say where a server's are"
    if not num_found:
        return f"no server's logs are {where}"
    return f"--back: got {back}, allowed: 0 to {num_found - 1}, for so many servers' logs are {where}"
