"""``bireme serve``."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.config import LLMConfig
from cluster.errors import BiremeError
from cluster.outputs import ServedModel
from cluster.terminal.app import app, console, errors
from deployments.commands.completion import SettingsCommand, complete_settings
from deployments.commands.serving.one_machine import check_one_machine
from deployments.commands.serving.start_view import StartView
from deployments.commands.serving.start_watcher import StartWatcher
from deployments.commands.setting_flags import TAKES_SETTINGS, say_accepted, with_setting_flags
from deployments.http.keys import ApiKeys
from deployments.http.server.header_timeout import check_connection_limits
from deployments.start.app_arguments import OTHER_WAYS, SettingsError
from deployments.start.preflight import (
    check_cache,
    check_cluster,
    check_descriptors,
    check_port,
    check_temporary_folder,
)
from deployments.start.ray_session import keep_ray_private, ray_base, ray_leftovers
from deployments.start.run_files.private_folder import private_base
from deployments.start.run_files.run_folder import make_run_folder
from deployments.start.serve_config import (
    DEFAULT_HOST,
    DEFAULT_PORT,
    configured_models,
    has_keys,
    named_after_model,
    serve_config,
    start_timeouts,
    without_keys,
)
from deployments.start.serve_environment import LOOPBACK_CLUSTER, apply_serve_environment
from deployments.supervision.server import run_server
from deployments.supervision.supervisor import supervised
from gpu_ops.build import OpBuildError

if TYPE_CHECKING:
    from actors.model_files.source import ModelSource

LOCAL = "local"


@app.command(cls=SettingsCommand, context_settings=TAKES_SETTINGS)
@with_setting_flags
def serve(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL|FILE.gguf|DIR|FILE.yaml] [NAME=VALUE]...",
            autocompletion=complete_settings,
            help="A model (a GGUF file, a directory, a Hugging Face id), a Serve config file or the name of one that comes along "
            "(llama_8b_gpu, smollm2_cpu, smollm2_gpu); and settings such as max_num_seqs=8.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help=f"Address the API listens on; default: what the file says, else {DEFAULT_HOST}, this machine alone. "
            "0.0.0.0 is every network: set API keys."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help=f"Port of the API; default: what the file says, else {DEFAULT_PORT}."),
    ] = None,
    address: Annotated[
        str, typer.Option(help="Ray cluster; local starts one on this machine.", envvar="RAY_ADDRESS")
    ] = LOCAL,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show all that Ray, Serve, HAProxy and Paddle print, too.")
    ] = False,
) -> None:
    """Prepare ops and model, then serve in the foreground until Ctrl-C."""
    supervisor = supervised()
    view = StartView(sys.stdout.fileno())
    try:
        config = serve_config(settings or [], host, port, say=say_accepted)
        configured = configured_models(config)
        models = [settings for _, settings in configured]
        if address != LOCAL and any(map(has_keys, config["applications"])):
            raise BiremeError(f"api_keys: the nodes of a cluster would learn them from Ray Serve's logs; {OTHER_WAYS}")
        if address != LOCAL:
            check_cluster(address, all(model.api_keys_file is not None for model in models))
            supervisor.uses_a_cluster()
        # A file of keys lies on the nodes of a cluster, not here.
        for model in models:
            ApiKeys.configured(model.api_keys, model.api_keys_file if address == LOCAL else None)
        if address == LOCAL:
            check_one_machine(configured)
        check_temporary_folder()
        check_descriptors()
        check_cache()
        base = ray_base() if address == LOCAL else None
        check_connection_limits()
        if base is not None:
            check_port_last(config["http_options"], base, models)
        view.begin("set-up")
        served, *_ = [prepare(model) for model in models]
        folder = make_run_folder()
        supervisor.leaves(glob.escape(str(folder)))
        config = without_keys(config, folder)
        if base is not None:
            # On a cluster a name is what the application is found by again.
            config = named_after_model(config, served.model_id)
            os.environ.update(LOOPBACK_CLUSTER)
            keep_ray_private(base)
            # What processes of the server make among temporary files goes when it goes, and paths of sockets are short.
            os.environ["TMPDIR"] = str(folder)
            for pattern in ray_leftovers(base, os.getpid()):
                supervisor.leaves(pattern)
        apply_serve_environment(folder, host=str(config["http_options"]["host"]))
        watcher = StartWatcher(view, config, configured[0], served, private_base() if base is None else base, verbose)
        supervisor.writes_to(watcher.log.descriptors)
        supervisor.logs_to(str(watcher.log.path))
        run_server(config, address, start_timeouts(config, models), supervisor, watcher)
    except (BiremeError, SettingsError, OpBuildError) as error:
        errors.print(f"Error: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None


def check_port_last(http: Mapping[str, Any], base: Path, models: list[LLMConfig]) -> None:
    """Raise BiremeError if nothing can listen there; where settings do not fit their model, that, which is mended first. For it
    configurations alone are fetched."""
    from actors.model_files.source import resolve_model

    try:
        check_port(str(http["host"]), http["port"], base)
    except BiremeError:
        for model in models:
            _look_into(model, resolve_model(model.model, load_format="dummy", tokenizer=model.tokenizer))
        raise


def prepare(config: LLMConfig) -> ServedModel:
    """Build the ops, fetch the model and look into it, where a person can watch and an error is one line; what is served then."""
    from actors.model_files.source import model_of
    from actors.text.tokenizer import load_tokenizer
    from deployments.start.prepare import prepare_model, prepare_ops

    prepare_ops(console)
    if config.load_format == "auto":
        prepare_model(console, config.model)
    source = model_of(config)
    load_tokenizer(source)
    return _look_into(config, source)


def _look_into(config: LLMConfig, source: ModelSource) -> ServedModel:
    """What is served of these files. Raises a BiremeError where the settings do not fit them."""
    from actors.engine.memory_plan import expected_max_model_len
    from actors.model_files.config import load_model_config
    from deployments.openai_api.requests.sampling_defaults import sampling_defaults

    model = load_model_config(source)
    sampling_defaults(config, source)
    max_model_len = expected_max_model_len(config, model.max_position_embeddings)
    return ServedModel(config.model_id or source.name, max_model_len, model.vocab_size)
