"""Settings that a Ray of this machine alone can never meet: it would wait for another node, which cannot come."""

from __future__ import annotations

from typing import Any

from actors.device.compute_type import CPU_TYPES, compute_dtype
from cluster.config import ENGINE_REPLICA_CPUS, INGRESS_CPUS, SIMULATED, LLMConfig
from cluster.errors import BiremeError
from cluster.process.machine_size import ray_cpus
from deployments.commands.machine_plan import ENGINES, INGRESSES, engine_count, num_ingresses, replica_cpus

_ELSEWHERE = "or join a cluster that has it (RAY_ADDRESS)"


def check_one_machine(configured: list[tuple[dict[str, Any], LLMConfig]]) -> None:
    """Raise BiremeError or SettingsError, one sentence with the setting, if engines of these applications cannot be had here."""
    _check_cpus(configured)
    asking = [model for _, model in configured if _asks_for_gpus(model)]
    if asking:
        _check_gpus(asking)
    for _, model in configured:
        if model.device in ("cpu", "gpu"):
            compute_dtype(model, is_gpu=model.device == "gpu")


def _check_cpus(configured: list[tuple[dict[str, Any], LLMConfig]]) -> None:
    """One engine of each application and all of its ingresses, then the fewest engines that are to be there."""
    present, least, in_all = ray_cpus(), 0.0, 0.0
    for application, model in configured:
        replica = replica_cpus(application, ENGINES, model.deployment_config, ENGINE_REPLICA_CPUS)
        engine = round(model.runner_num_cpus + replica, 3)
        ingress = replica_cpus(application, INGRESSES, model.ingress_config, INGRESS_CPUS)
        ingresses = num_ingresses(application, model) * ingress
        has = f"and Ray counts {present} CPU{'s' if present > 1 else ''} on this machine"
        least, in_all = least + engine + ingresses, in_all + ingresses
        if least > present + 1e-9:
            raise BiremeError(
                f"runner_num_cpus is {model.runner_num_cpus:g} {has}: an engine and what is beside it reserve {least:g}; "
                f"set a smaller one (it bounds no threads), {_ELSEWHERE}",
                "runner_num_cpus",
            )
        count = engine_count(application, model)
        in_all += (count.fewest or 0) * engine
        if in_all > present + 1e-9:
            setting = count.setting.replace("max_replicas", "min_replicas")
            raise BiremeError(
                f"{setting} is {count.fewest} {has}: so many engines and what is beside them reserve {in_all:g}; "
                f"set fewer, or a smaller runner_num_cpus (it bounds no threads), {_ELSEWHERE}"
            )


def _asks_for_gpus(model: LLMConfig) -> bool:
    if model.device in ("cpu", SIMULATED):
        return bool(model.runner_num_gpus or model.accelerator_type)
    is_16_bit = model.dtype not in ("auto", *CPU_TYPES)
    return model.device == "gpu" or is_16_bit or bool(model.runner_num_gpus or model.accelerator_type)


def _check_gpus(models: list[LLMConfig]) -> None:
    # They import Ray Serve, which takes a second or two.
    from deployments.ray_private.serve import gpu_type_of_this_machine, gpus_of_this_machine
    from deployments.replica.gpu_placement import ClusterGpus, runner_num_gpus

    present = gpus_of_this_machine()
    for model in models:
        share = runner_num_gpus(model, ClusterGpus(present))
        if share and not present:
            raise BiremeError(
                f"runner_num_gpus is {share:g}, and Ray finds no GPU on this machine; leave it out, {_ELSEWHERE}",
                "runner_num_gpus",
            )
        if model.accelerator_type is not None:
            _check_type(model.accelerator_type, gpu_type_of_this_machine() if present else None, present)
        if model.device == "auto" and not present:
            compute_dtype(model, is_gpu=False)


def _check_type(wanted: str, found: str | None, present: int) -> None:
    # Of a GPU whose type Ray does not know it has none to give.
    if wanted == found:
        return
    has = f"Ray finds {found or 'one of no type that it knows'}" if present else "Ray finds no GPU"
    raise BiremeError(
        f"accelerator_type is {wanted}, and {has} on this machine; leave it out, {_ELSEWHERE}", "accelerator_type"
    )
