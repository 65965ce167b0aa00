"""The two processes of an engine, its replica and its runner, as Ray is told to start them: each prepares itself first."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from cluster.config import EngineConfig, LLMConfig
from deployments.ray_private.worker_pool import START_HOOK

# What a process is told of itself, in JSON.
VARIABLE = "BIREME_PROCESS"
REPLICA, RUNNER = "replica", "runner"
KINDS = (REPLICA, RUNNER)
_LONGEST_LABEL = 40
_HOOK = "deployments.spares.process_hook.begin"
# Imported at the start of a process of the kind, so that the actor that comes later finds it there.
_MODULES = {REPLICA: "deployments.replica.engine_replica", RUNNER: "deployments.replica.streaming_runner"}


class EngineProcesses(NamedTuple):
    """Of the engines of one configuration.

    Attributes:
        group: name that only they have.
        variables: of the environment, by kind. A process that has others is no spare for these engines.
        reserved: what Ray reserves for an engine, on one node.
        model: short name of what they serve, for a person.
    """

    group: str
    variables: dict[str, dict[str, str]]
    reserved: dict[str, float]
    model: str = ""


def engine_processes(config: LLMConfig, num_gpus: float, bundles: Sequence[dict[str, float]] = ()) -> EngineProcesses:
    """What is to be there before engines with these settings are, each runner with so many GPUs.

    Args:
        bundles: of an engine's placement group.
    """
    reserved: Counter[str] = Counter()
    for bundle in bundles:
        reserved.update(bundle)
    engine = config.engine_config().model_dump(mode="json")
    text = json.dumps([config.model_copy(update={"api_keys": []}).model_dump(mode="json"), num_gpus], sort_keys=True)
    group = hashlib.sha256(text.encode()).hexdigest()[:16]
    on_gpu = num_gpus > 0 or config.device == "gpu"
    runner = _variables(RUNNER, group, {"engine": engine, "on_gpu": on_gpu})
    replica = _variables(REPLICA, group, {"runner": runner})
    return EngineProcesses(group, {REPLICA: replica, RUNNER: runner}, dict(reserved), model_label(config))


def _variables(kind: str, group: str, told: dict[str, Any]) -> dict[str, str]:
    told = {"kind": kind, "group": group, "module": _MODULES[kind], **told}
    return {START_HOOK: _HOOK, VARIABLE: json.dumps(told, sort_keys=True)}


def model_label(config: LLMConfig | EngineConfig) -> str:
    """The model's name as actors show it, without the folders that it lies in; one word."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", config.model_id or PurePath(config.model).stem)
    return name[:_LONGEST_LABEL]
