"""``bireme models``, ``bireme pull`` and ``bireme rm``: what the cache holds."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.table import Table

from actors.model_files.kept import KeptModel, kept_models, remove
from cluster.config import DEFAULT_MODEL
from cluster.errors import BiremeError
from cluster.process.cache import cache_dir
from cluster.terminal.app import app, console, show_error
from deployments.commands.completion import complete_model
from deployments.start.prepare import prepare_model
from deployments.start.settings_names import nearest


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="A list for programs.")] = False) -> None:
    """Show the models that are kept here: name, size, folder. ready-weights are all models' weights as the CPU maps them."""
    found = kept_models()
    if as_json:
        rows = [{"name": item.name, "bytes": item.num_bytes, "path": str(item.path)} for item in found]
        console.print(json.dumps(rows, indent=2), highlight=False, markup=False, soft_wrap=True)
        return
    if not found:
        console.print(f"{cache_dir()} holds no model yet; bireme pull {DEFAULT_MODEL} fetches one", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for item in found:
        table.add_row(item.name, size_text(item.num_bytes), str(item.path))
    console.print(table, highlight=False, markup=False)


@app.command()
def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", autocompletion=complete_model, help="The default model's name, or a Hugging Face id."
        ),
    ],
) -> None:
    """Fetch a model, so that a later start finds it here."""
    try:
        prepare_model(console, model)
    except BiremeError as error:
        show_error(error)
        raise typer.Exit(1) from None
    console.print(f"{model} is here", highlight=False, markup=False)


@app.command()
def rm(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", autocompletion=complete_model, help="Name of a model (bireme models), or ready-weights."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model from the cache; files elsewhere are never touched. A server that runs keeps what it has loaded."""
    try:
        item = _kept(model)
        if not yes:
            if not sys.stdin.isatty():
                raise BiremeError("rm asks before it removes, and this is no terminal; add --yes")
            question = f"Remove {item.path} ({size_text(item.num_bytes)})?"
            typer.confirm(question, abort=True)
        remove(item)
    except BiremeError as error:
        show_error(error)
        raise typer.Exit(1) from None
    console.print(f"{item.name}: {size_text(item.num_bytes)} removed", highlight=False, markup=False)


def _kept(name: str) -> KeptModel:
    found = {item.name: item for item in kept_models()}
    if name not in found:
        near = nearest(name, found) or f"; there are: {', '.join(found) or 'none'}"
        raise BiremeError(f"the cache holds no model {name!r}{near}")
    return found[name]


def size_text(num_bytes: int) -> str:
    """Bytes for a person, in powers of ten as disks are sold."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
