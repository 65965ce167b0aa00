"""The ``bireme`` command: the client's commands, and ``serve``, which needs the whole project."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli import app, console, errors
from cluster.config import LLMConfig
from cluster.errors import BiremeError
from deployments.app_arguments import AppArguments, SettingsError
from deployments.serve_environment import apply_serve_environment

BUILDER = "deployments.llm:build_openai_app"


@app.command()
def serve(
    settings: Annotated[
        list[str] | None, typer.Argument(help="A Serve config file, or settings such as model=PATH max_num_seqs=8.")
    ] = None,
    address: Annotated[
        str, typer.Option(help="Ray cluster; local starts one on this machine.", envvar="RAY_ADDRESS")
    ] = "local",
) -> None:
    """Prepare ops and model, then serve in the foreground until Ctrl-C."""
    settings = settings or []
    is_file = len(settings) == 1 and Path(settings[0]).is_file()
    try:
        prepare(configured_model(settings, is_file))
    except BiremeError as error:
        errors.print(f"Error: {error.message}", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None
    apply_serve_environment()
    target = settings if is_file else [BUILDER, *settings]
    program = Path(sys.executable).with_name("serve")
    os.execv(program, [str(program), "run", "--address", address, *target])


def prepare(config: LLMConfig) -> None:
    """Build the ops, fetch the model and look into it, where a person can watch and an error is one line."""
    from actors.model_config import load_model_config
    from actors.model_source import resolve_model
    from actors.tokenizer import load_tokenizer
    from deployments.prepare import prepare_model, prepare_ops

    prepare_ops(console)
    if config.load_format == "auto":
        prepare_model(console, config.model)
    source = resolve_model(config.model, load_format=config.load_format, tokenizer=config.tokenizer)
    load_model_config(source)
    load_tokenizer(source)


def configured_model(settings: list[str], is_file: bool) -> LLMConfig:
    """The configuration that ``settings`` amount to.

    Raises:
        BiremeError: they are not valid.
    """
    if is_file:
        import yaml

        applications = (yaml.safe_load(Path(settings[0]).read_text()) or {}).get("applications") or [{}]
        arguments = applications[0].get("args") or {}
    else:
        wrong = [item for item in settings if "=" not in item]
        if wrong:
            raise BiremeError(f"{wrong[0]!r} is neither a file nor a setting of the form NAME=VALUE")
        arguments = dict(item.split("=", 1) for item in settings)
    try:
        return AppArguments.model_validate(arguments)
    except SettingsError as error:
        raise BiremeError(error.message) from None


if __name__ == "__main__":
    app()
