"""Whether a runner gets a GPU of the cluster. Decided where the application is built, because the placement group of a
replica, and with it what an autoscaler sees as demand, is fixed from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray

from cluster.config import SIMULATED, LLMConfig
from deployments.ray_private.serve import gpus_of_this_machine, possible_gpus
from deployments.start.app_arguments import SettingsError

logger = logging.getLogger("ray.serve")


class ClusterGpus(NamedTuple):
    """What Ray knows of GPUs.

    Attributes:
        present: GPUs of the nodes that are there.
        possible: GPUs that an autoscaler says it could add up to; 0 without one.
        types: accelerator types of the nodes that are there.
        nodes: how many nodes are there; 0 if Ray does not run yet and this machine was looked at instead.
    """

    present: float
    possible: float = 0.0
    types: tuple[str, ...] = ()
    nodes: int = 0


def cluster_gpus() -> ClusterGpus:
    """GPUs of the cluster that this process is connected to; of this machine if it is connected to none, as when
    ``serve run module:builder`` builds an application before it starts Ray.
    """
    if not ray.is_initialized():
        return ClusterGpus(gpus_of_this_machine())
    resources: Mapping[str, float] = ray.cluster_resources()
    types = tuple(sorted(name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")))
    alive = sum(node["Alive"] for node in ray.nodes())
    return ClusterGpus(resources.get("GPU", 0.0), possible_gpus(), types, alive)


def runner_num_gpus(config: LLMConfig, gpus: ClusterGpus) -> float:
    """GPUs that Ray reserves for a runner: as set; else one on a GPU, and with ``device: auto`` one if there are any.

    Raises:
        SettingsError: a GPU is asked for and no node has one, nor can an autoscaler add one; Ray would wait for ever.
    """
    if config.runner_num_gpus is not None:
        return config.runner_num_gpus
    if config.device in ("cpu", SIMULATED):
        return 0.0
    if gpus.present > 0 or gpus.possible > 0:
        _check_type(config, gpus)
        return 1.0
    if config.device == "gpu":
        if gpus.nodes:
            raise SettingsError(
                f"device: gpu, but Ray sees {gpus.nodes} nodes and no GPU on any; use device: auto or cpu, connect to a cluster "
                "with GPUs, or set runner_num_gpus: 1 to wait for a node with one"
            )
        raise SettingsError(
            "device: gpu, but this machine has none that Ray finds; use device: auto or cpu, or connect to a cluster with GPUs"
        )
    return 0.0


def _check_type(config: LLMConfig, gpus: ClusterGpus) -> None:
    wanted = config.accelerator_type
    if wanted is not None and gpus.nodes and not gpus.possible and wanted not in gpus.types:
        raise SettingsError(
            f"accelerator_type: {wanted}, but the nodes of this cluster have {', '.join(gpus.types) or 'none that Ray knows'}; "
            "use one of these, or set runner_num_gpus: 1 to wait for a node with one"
        )


def runner_resources(config: LLMConfig, num_gpus: float) -> dict[str, float]:
    """The runner's bundle in the placement group of its replica."""
    bundle: dict[str, Any] = {"CPU": config.runner_num_cpus}
    if num_gpus:
        bundle["GPU"] = num_gpus
    if config.accelerator_type is not None:
        bundle[f"accelerator_type:{config.accelerator_type}"] = 0.001
    return bundle
