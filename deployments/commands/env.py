"""``bireme env``: what processes of a cluster are to find in their environment."""

from __future__ import annotations

import os
import shlex

import typer

from cluster.errors import BiremeError
from cluster.terminal.app import app, show_error
from deployments.start.run_files.private_folder import private_base
from deployments.start.run_files.run_folder import LONGEST_FOR_HAPROXY, PIDS
from deployments.start.serve_environment import apply_serve_environment


@app.command()
def env() -> None:
    """Print, for a shell, the variables that `bireme serve` sets: to be set on each node before `ray start`."""
    try:
        folder = private_base(longest=LONGEST_FOR_HAPROXY - len("/node")) / "node"
    except BiremeError as error:
        show_error(error)
        raise typer.Exit(1) from None
    (folder / PIDS).mkdir(parents=True, exist_ok=True)
    wanted = dict(os.environ)
    wanted.setdefault("RAY_AUTH_MODE", "token")
    apply_serve_environment(folder, wanted)
    for name in sorted(wanted.keys()):
        if os.environ.get(name) != wanted[name]:
            # As it is, whatever the terminal's width: a shell reads it.
            typer.echo(f"export {name}={shlex.quote(wanted[name])}")
