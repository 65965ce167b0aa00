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
INGRESSES = "OpenAiIngress"
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
        replica_cpus, cpus_per_ingress: that Ray reserves for a replica of the engine and for an ingress.
    """

    name: str
    config: LLMConfig
    engines: EngineCount
    num_ingresses: int
    model: ModelConfig
    plan: MemoryPlan
    is_gpu: bool
    replica_cpus: float = ENGINE_REPLICA_CPUS
    cpus_per_ingress: float = INGRESS_CPUS

    @property
    def engine_bytes(self) -> int:
        """Of the device that one engine computes on."""
        plan = self.plan
        return plan.weight_bytes + plan.kv_cache_bytes + plan.step_bytes + plan.graph_bytes

    @property
    def engine_cpus(self) -> float:
        """That Ray reserves for one engine: its runner's and its replica's."""
        return self.config.runner_num_cpus + self.replica_cpus

    @property
    def engine_gpus(self) -> float:
        """That Ray reserves for one engine."""
        own = self.config.runner_num_gpus
        return float(self.is_gpu) if own is None else own

    @property
    def ingress_cpus(self) -> float:
        """That Ray reserves for its ingresses."""
        return self.num_ingresses * self.cpus_per_ingress


def engine_count(application: Mapping[str, Any], config: LLMConfig) -> EngineCount:
    """How many engines the application may have: what its ``deployments`` say of them comes before its settings."""
    for number, deployment in enumerate(application.get("deployments") or []):
        if deployment.get("name") == ENGINES:
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
    for options in (*_given(application, INGRESSES), config.ingress_config):
        if isinstance(count := options.get("num_replicas"), int):
            return count
    return 1


def replica_cpus(application: Mapping[str, Any], deployment: str, own: Mapping[str, Any], default: float) -> float:
    """CPUs that Ray reserves for a replica of ``deployment``: what the application's ``deployments`` say of it comes before its
    setting ``own``."""
    for options in (*_given(application, deployment), own):
        if (actor := options.get("ray_actor_options")) is not None:
            return float(actor.get("num_cpus", default))
    return default


def _given(application: Mapping[str, Any], deployment: str) -> list[Mapping[str, Any]]:
    return [one for one in application.get("deployments") or [] if one.get("name") == deployment]


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
        bounds += _gpu_bounds(one, _gpus_left(before, machine.num_gpus), machine)
    most, why = min(bounds, key=lambda bound: bound[0])
    return max(0, int(most)), why


def _gpu_bounds(one: Planned, left: list[float], machine: Machine) -> Iterator[tuple[int, str]]:
    """As ``_most_beside``, of GPUs of which ``left`` is free each; nothing where Ray reserves no part of one for an engine."""
    share = one.engine_gpus
    if not share:
        return
    fits = [_whole(part / share) for part in left]
    most = sum(fits) if share < 1 else _whole(left.count(1.0) / share)
    yield most, f"by GPUs (an engine takes {share:g} of {machine.num_gpus})"
    a_gpu = machine.gpu_bytes // one.engine_bytes
    if share < 1 and (by_memory := sum(min(number, a_gpu) for number in fits)) < most:
        size = f"{one.engine_bytes / _GIB:.1f} GiB"
        yield by_memory, f"by a GPU's memory (gpu_memory_utilization and num_kv_blocks: an engine takes {size})"


def _gpus_left(taken_by: list[Planned], num_gpus: int) -> list[float]:
    """What is free of each GPU where a part of one is taken from the GPU that has least left, as Ray does."""
    left = [1.0] * num_gpus
    for other in taken_by:
        share = other.engine_gpus if other.is_gpu else 0.0
        for _ in range(other.engines.most if share else 0):
            enough = sorted((part, number) for number, part in enumerate(left) if part + 1e-9 >= min(share, 1.0))
            if len(enough) < math.ceil(share):
                break  # it does not fit itself, which is said of it
            for part, number in enough[: math.ceil(share)]:
                left[number] = max(0.0, round(part - min(share, 1.0), 6))
    return left


def _whole(number: float) -> int:
    return math.floor(number + 1e-9)
