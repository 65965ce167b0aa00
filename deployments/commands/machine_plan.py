"""What all engines of a Serve config take of one machine, and which setting asks for more than it has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.config import ENGINE_REPLICA_CPUS, INGRESS_CPUS, LLMConfig

if TYPE_CHECKING:
    from actors.engine.memory_plan import MemoryPlan
    from actors.models.config import ModelConfig

ENGINES = "LLMServer"
_INGRESSES = "OpenAiIngress"
_GIB = 2**30


class Machine(NamedTuple):
    """What there is to divide.

    Attributes:
        memory_bytes: of the host.
        num_cpus: CPUs as Ray counts them.
        num_gpus: None: not known, as of another machine's.
        gpu_bytes: memory of one of its GPUs.
    """

    memory_bytes: int
    num_cpus: float
    num_gpus: int | None = 0
    gpu_bytes: int = 0


class EngineCount(NamedTuple):
    """How many engines an application may have, and the setting that says so."""

    fewest: int
    most: int
    setting: str


class Planned(NamedTuple):
    """An application with the plan of one of its engines.

    Attributes:
        name: of the application.
    """

    name: str
    config: LLMConfig
    engines: EngineCount
    num_ingresses: int
    model: ModelConfig
    plan: MemoryPlan
    is_gpu: bool

    @property
    def engine_bytes(self) -> int:
        """Of the device that one engine computes on."""
        plan = self.plan
        return plan.weight_bytes + plan.kv_cache_bytes + plan.step_bytes + plan.graph_bytes

    @property
    def engine_cpus(self) -> float:
        """That Ray reserves for one engine: its runner's and its replica's."""
        options = self.config.deployment_config.get("ray_actor_options") or {}
        return self.config.runner_num_cpus + float(options.get("num_cpus", ENGINE_REPLICA_CPUS))

    @property
    def engine_gpus(self) -> float:
        """That Ray reserves for one engine."""
        own = self.config.runner_num_gpus
        return float(self.is_gpu) if own is None else own

    @property
    def ingress_cpus(self) -> float:
        """That Ray reserves for its ingresses."""
        options = self.config.ingress_config.get("ray_actor_options") or {}
        return self.num_ingresses * float(options.get("num_cpus", INGRESS_CPUS))


def engine_count(application: Mapping[str, Any], config: LLMConfig) -> EngineCount:
    """How many engines the application may have: what its ``deployments`` say of them comes before its settings."""
    for number, deployment in enumerate(application.get("deployments") or []):
        if isinstance(deployment, dict) and deployment.get("name") == ENGINES:
            found = _bounds(deployment, f"deployments[{number}].")
            if found is not None:
                return found
    if config.autoscaling is not None:
        return EngineCount(*config.engine_counts, "autoscaling.max_replicas")
    return _bounds(config.deployment_config, "deployment_config.") or EngineCount(
        *config.engine_counts, "deployment_config.num_replicas"
    )


def num_ingresses(application: Mapping[str, Any], config: LLMConfig) -> int:
    """Ingresses that are there in any case."""
    given = [
        one for one in application.get("deployments") or [] if isinstance(one, dict) and one.get("name") == _INGRESSES
    ]
    for options in (*given, config.ingress_config):
        if isinstance(count := options.get("num_replicas"), int):
            return count
    return 1


def _bounds(options: Mapping[str, Any], path: str) -> EngineCount | None:
    scaling = options.get("autoscaling_config")
    if isinstance(scaling, dict):
        bounds = scaling.get("min_replicas", 1), scaling.get("max_replicas", 1)
        return EngineCount(*bounds, f"{path}autoscaling_config.max_replicas")
    count = options.get("num_replicas")
    return EngineCount(count, count, f"{path}num_replicas") if isinstance(count, int) else None


def count_text(count: EngineCount) -> str:
    """``3``, or ``1-8`` where the number follows the load."""
    return "-".join(str(number) for number in sorted({count.fewest, count.most}))


def together(planned: list[Planned], machine: Machine) -> str:
    """What all engines take where there are as many as may be, beside what the machine has."""
    parts = []
    on_host = [one for one in planned if not one.is_gpu]
    if on_host:
        needed = sum(one.engines.most * one.engine_bytes for one in on_host)
        parts.append(f"{needed / _GIB:.1f} of {machine.memory_bytes / _GIB:.1f} GiB")
    on_gpu = [one for one in planned if one.is_gpu]
    if on_gpu:
        needed_gpus = sum(one.engines.most * one.engine_gpus for one in on_gpu)
        known = "" if machine.num_gpus is None else f" of {machine.num_gpus}"
        parts.append(f"{needed_gpus:g}{known} {'GPU' if needed_gpus == 1 and not known else 'GPUs'}")
    parts.append(f"{_cpus(planned):g} of {machine.num_cpus:g} CPUs reserved")
    num_engines = sum(one.engines.most for one in planned)
    return f"{num_engines} engine{'s' if num_engines > 1 else ''}: {', '.join(parts)}"


def _cpus(planned: list[Planned]) -> float:
    return round(sum(one.engines.most * one.engine_cpus + one.ingress_cpus for one in planned), 3)


def faults(planned: list[Planned], machine: Machine) -> Iterator[str]:
    """What this machine cannot have, a sentence each, by the setting that asks for it. Another node may have it."""
    before: list[Planned] = []
    for one in planned:
        most, why = _most_beside(one, before, machine)
        if most < one.engines.most:
            setting = one.engines.setting if len(planned) == 1 else f"{one.engines.setting} of {one.name}"
            beside = f" beside {', '.join(other.name for other in before)}" if before else ""
            fits = f"{most} fit{'s' if most == 1 else ''}" if most else "none fits"
            yield f"{setting} is {one.engines.most}: {fits} on this machine{beside}, {why}"
        before.append(one)


def _most_beside(one: Planned, before: list[Planned], machine: Machine) -> tuple[int, str]:
    """How many of its engines fit beside those of others, and what is short, with the setting of one engine that asks for it."""
    cpus = machine.num_cpus - _cpus(before) - one.ingress_cpus
    bounds = [(_whole(cpus / one.engine_cpus), f"by CPUs (runner_num_cpus is {one.config.runner_num_cpus:g})")]
    if not one.is_gpu:
        free = machine.memory_bytes - sum(
            other.engines.most * other.engine_bytes for other in before if not other.is_gpu
        )
        setting = "num_kv_blocks" if one.config.num_kv_blocks else "kv_cache_memory_gb"
        bounds.append(
            (free // one.engine_bytes, f"by memory ({setting}: an engine takes {one.engine_bytes / _GIB:.2f} GiB)")
        )
    elif machine.num_gpus is not None:
        taken = sum(other.engines.most * other.engine_gpus for other in before if other.is_gpu)
        gpus = machine.num_gpus - taken
        share = one.engine_gpus
        most = _whole(gpus / share) if share >= 1 or gpus < 1 else _whole(gpus) * _whole(1 / share)
        bounds.append((most, f"by GPUs (an engine takes {share:g} of {machine.num_gpus})"))
        if 0 < share < 1 and (a_gpu := machine.gpu_bytes // one.engine_bytes) < _whole(1 / share):
            size = f"{one.engine_bytes / _GIB:.1f} GiB"
            what = f"by a GPU's memory (gpu_memory_utilization and num_kv_blocks: an engine takes {size})"
            bounds.append((_whole(gpus) * a_gpu, what))
    most, why = min(bounds, key=lambda bound: bound[0])
    return max(0, int(most)), why


def _whole(number: float) -> int:
    return math.floor(number + 1e-9)
