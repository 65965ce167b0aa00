"""``bireme dashboard``: where Ray's dashboard is and how to get in."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import BiremeError
from cluster.terminal.app import app, errors, print_wrapped, show_error
from deployments.start.ray_session import ray_base
from deployments.start.run_files.past_sessions import (
    dashboard_address,
    joined_head,
    joined_sessions,
    on_port,
    others_note,
    sessions,
)

_CONNECT_S = 2.0


@app.command()
def dashboard(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of the server whose API is on this port.")] = None,
) -> None:
    """Show the address of the dashboard of the server that was started last here, and how to get in."""
    try:
        address = _answering_address(port)
    except BiremeError as error:
        show_error(error)
        raise typer.Exit(1) from None
    token = Path.home() / ".ray" / "auth_token"
    local = address.rpartition(":")[2]
    lines = [
        f"http://{address}",
        f"It asks for a token: `cat {token}` shows it. Whoever has it may run anything in the cluster as you.",
        f"From another machine: ssh -L {local}:{address} USER@{socket.gethostname()}, then http://127.0.0.1:{local}",
    ]
    for line in lines if token.is_file() else [lines[0], lines[2]]:
        print_wrapped(line, 0)


def _answering_address(api_port: int | None) -> str:
    known = sessions(ray_base())
    # On a cluster of ray start the head's session has it.
    for session in [*on_port(known, api_port), *(joined_sessions() if api_port is None else ())]:
        address = dashboard_address(session)
        if address is None:
            continue
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, ValueError):
            continue
        if api_port is None and (note := others_note(session, known)):
            errors.print(note, style="yellow", highlight=False, markup=False)
        return address
    if (head := joined_head()) is not None and api_port is None:
        raise BiremeError(
            f"no dashboard of yours answers on this machine; the cluster that it joined last has its head at {head}: "
            "bireme dashboard shows it there, unless ray start was told --include-dashboard=false"
        )
    raise BiremeError("no server of yours with a dashboard runs on this machine; bireme serve starts one")
