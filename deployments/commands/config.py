"""``bireme config check``: settings, and what they make of the memory, without a server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cluster.config import ENGINE_REPLICA_CPUS, INGRESS_CPUS, SIMULATED, LLMConfig
from cluster.errors import BiremeError
from cluster.process.machine_size import ray_cpus, usable_memory
from cluster.terminal.app import app, errors, print_wrapped
from deployments.commands.completion import SettingsCommand, complete_settings
from deployments.commands.machine_plan import (
    ENGINES,
    INGRESSES,
    Machine,
    Planned,
    count_text,
    engine_count,
    faults,
    num_ingresses,
    replica_cpus,
    together,
)
from deployments.commands.setting_flags import TAKES_SETTINGS, say_accepted, with_setting_flags
from deployments.http.keys import ApiKeys
from deployments.start.app_arguments import SettingsError
from deployments.start.serve_config import configured_models, name_of, serve_config

config_app = typer.Typer(no_args_is_help=True, help="Look at settings without starting a server.")
app.add_typer(config_app, name="config")
_GIB = 2**30
_SHORT_STREAM = 1024
_NAME_WIDTH = 11


@config_app.callback()
def config() -> None:
    """Look at settings without starting a server."""


@config_app.command(cls=SettingsCommand, context_settings=TAKES_SETTINGS)
@with_setting_flags
def check(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL|FILE.gguf|DIR|FILE.yaml] [NAME=VALUE]...",
            autocompletion=complete_settings,
            help="As for bireme serve.",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="As for bireme serve; nothing listens.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="As for bireme serve; nothing listens.")] = None,
    gpu_gib: Annotated[
        float | None,
        typer.Option(min=1, max=4096, help="Plan for a GPU of so much memory instead of this machine's device."),
    ] = None,
) -> None:
    """Check settings and model files, and show how the memory would be divided. Weights are neither fetched nor read."""
    try:
        applications = configured_models(serve_config(settings or [], host, port, say=say_accepted))
        if gpu_gib is not None and not any(_may_have_a_gpu(model) for _, model in applications):
            model = applications[0][1]
            why = f"device is {model.device}" if model.device != "auto" else "runner_num_gpus is 0"
            raise BiremeError(f"--gpu-gib: {why}", "device")
        gpus = gpu_memory() if gpu_gib is None and any(_may_have_a_gpu(model) for _, model in applications) else []
        planned = [
            _planned(application, name_of(application, number), model, gpus, gpu_gib)
            for number, (application, model) in enumerate(applications)
        ]
    except (BiremeError, SettingsError) as error:
        errors.print(f"Error: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None
    known_gpus = len(gpus) if gpu_gib is None else None
    machine = Machine(usable_memory(), ray_cpus(), known_gpus, gpus[0][1] if gpus else 0)
    for line in _lines(planned, machine, gpu_gib):
        print_wrapped(line, _NAME_WIDTH)


def _planned(
    application: dict[str, Any], name: str, config: LLMConfig, gpus: list[tuple[int, int]], gpu_gib: float | None
) -> Planned:
    """The application with the plan of one of its engines."""
    # What reads models takes longer to load than a list of commands may take to show.
    from actors.device.compute_type import compute_dtype
    from actors.engine.memory_plan import plan_memory
    from actors.model_files.config import load_model_config
    from actors.model_files.source import resolve_model
    from actors.model_files.weight_format import kinds_in_use
    from actors.models.gpu_limits import check_gpu_model
    from deployments.openai_api.requests.sampling_defaults import sampling_defaults

    ApiKeys.configured(config.api_keys, config.api_keys_file)
    # As dummy weights: of a model that is not here yet, its configuration is all that is fetched.
    source = resolve_model(config.model, load_format="dummy", tokenizer=config.tokenizer)
    model = load_model_config(source)
    sampling_defaults(config, source)
    gpu = _gpu(config, gpus, gpu_gib)
    compute_dtype(config, gpu is not None)
    if gpu is not None:
        check_gpu_model(model)
    free, total = gpu or (usable_memory(), usable_memory())
    stored = kinds_in_use(config, source, model, gpu is not None)
    plan = plan_memory(config, model, gpu is not None, free, total, stored=stored)
    count, ingresses = engine_count(application, config), num_ingresses(application, config)
    cpus = (
        replica_cpus(application, ENGINES, config.deployment_config, ENGINE_REPLICA_CPUS),
        replica_cpus(application, INGRESSES, config.ingress_config, INGRESS_CPUS),
    )
    return Planned(name, config, count, ingresses, model, plan, gpu is not None, *cpus)


def _lines(planned: list[Planned], machine: Machine, gpu_gib: float | None) -> Iterator[str]:
    for one in planned:
        if len(planned) > 1:
            yield f"application {one.name}"
        gpu_bytes = machine.gpu_bytes if gpu_gib is None else int(gpu_gib * _GIB)
        yield from plan_lines(one, gpu_bytes if one.is_gpu else machine.memory_bytes)
        if len(planned) > 1:
            yield ""
    yield f"together   {together(planned, machine)}"
    for fault in faults(planned, machine):
        yield f"warning    {fault}; another node may have the others"


def plan_lines(one: Planned, total: int) -> list[str]:
    """The plan of an application's engines for a person, one line a share.

    Args:
        total: bytes of the device that one engine computes on.
    """
    config, model, plan = one.config, one.model, one.plan
    short = min(_SHORT_STREAM, plan.max_model_len)
    streams = f"{plan.num_streams(config, plan.max_model_len)} × {plan.max_model_len:,} tokens"
    if short < plan.max_model_len:
        streams += f", or {plan.num_streams(config, short)} × {short:,}"
    lines = [
        f"model      {config.model} ({model.architecture}, up to {model.max_position_embeddings:,} tokens)",
        f"engines    {count_text(one.engines)}, each on one {'GPU' if one.is_gpu else 'CPU'} of {total / _GIB:.1f} GiB",
        f"weights    {plan.weight_bytes / _GIB:.2f} GiB",
        (
            f"KV cache   {plan.kv_cache_bytes / _GIB:.2f} GiB of {plan.kv_cache_dtype}: {plan.num_blocks:,} blocks of "
            f"{config.block_size} tokens, {plan.block_bytes / 1024:.0f} KiB each"
        ),
    ]
    if plan.step_bytes:
        lines.append(f"steps      {plan.step_bytes / _GIB:.2f} GiB, of at most {plan.budget:,} tokens")
    if plan.graph_bytes:
        lines.append(f"graphs     {plan.graph_bytes / _GIB:.2f} GiB at most")
    lines.append(f"streams    {streams}, of at most {config.max_num_seqs} at once in an engine")
    return lines


def _gpu(config: LLMConfig, gpus: list[tuple[int, int]], gpu_gib: float | None) -> tuple[int, int] | None:
    """(free, total) bytes of the GPU that an engine would get; None for the CPU."""
    if not _may_have_a_gpu(config):
        return None
    if gpu_gib is not None:
        return int(gpu_gib * _GIB), int(gpu_gib * _GIB)
    if config.device == "gpu" and not gpus:
        raise BiremeError(
            "device is gpu, and nvidia-smi shows none here; --gpu-gib plans for another machine's", "device"
        )
    return gpus[0] if gpus else None


def _may_have_a_gpu(config: LLMConfig) -> bool:
    """Whether an engine computes on a GPU where there is one. Without a share of one Ray shows it none."""
    return config.device not in ("cpu", SIMULATED) and (config.device == "gpu" or config.runner_num_gpus != 0)


def gpu_memory() -> list[tuple[int, int]]:
    """(free, total) bytes of each GPU that nvidia-smi shows; none if it cannot be run."""
    command = ["nvidia-smi", "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        rows = [[int(part) << 20 for part in line.split(",")] for line in shown.splitlines()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return [(free, total) for free, total in rows]
