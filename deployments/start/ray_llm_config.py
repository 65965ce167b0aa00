"""Reads a configuration of Ray Serve LLM (``llm_configs``, of Ray 2.60) as settings of this project.

What cannot be carried over is named by its path, with what to use instead; nothing is left out that would change an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.config import SERVE_OPTIONS, LLMConfig
from cluster.errors import BiremeError
from deployments.start.ray_llm_keys import CONFIG_ELSEWHERE, ENGINE_ELSEWHERE, EXPERIMENTS_ELSEWHERE
from deployments.start.settings_names import nearest
from deployments.start.vllm_names import ALIASES, MEANS_NOTHING, ONE_DEVICE, VALUES, Elsewhere, is_same

LLM_CONFIGS = "llm_configs"
# Settings that may stand among the engine's arguments, as in vLLM.
_ENGINE_SETTINGS = LLMConfig.model_fields.keys() - {
    "api_keys",
    "deployment_config",
    "ingress_config",
    "model",
    "model_id",
}
_OF_THE_APPLICATION = (LLM_CONFIGS, "ingress_deployment_config", "ingress_cls_config")


def is_ray_llm_config(arguments: Any) -> bool:
    """Whether the arguments of an application are those of Ray Serve LLM."""
    return isinstance(arguments, Mapping) and LLM_CONFIGS in arguments


def settings_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for what Ray Serve LLM's ``build_openai_app`` was given. Settings of this project may stand beside it, and win.

    Raises:
        BiremeError: something cannot be carried over; a sentence each, in one line.
    """
    reading = _Reading()
    settings = reading.application({name: _plain(value) for name, value in arguments.items()})
    if reading.faults:
        raise BiremeError("; ".join(reading.faults), LLM_CONFIGS)
    return settings


class _Reading:
    """One configuration on its way.

    Attributes:
        faults: what cannot be carried over.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._settings: dict[str, Any] = {}

    def application(self, arguments: dict[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in arguments.items() if name not in _OF_THE_APPLICATION}
        for name in sorted(set(own) - set(LLMConfig.model_fields)):
            self._unknown(name, name, [*_OF_THE_APPLICATION, *LLMConfig.model_fields])
        self._elsewhere("", arguments, {"ingress_cls_config": Elsewhere("the ingress is of one class", (None, {}))})
        configs = arguments[LLM_CONFIGS]
        if not isinstance(configs, list) or not configs:
            self.faults.append(f"{LLM_CONFIGS}: needs a list with one configuration")
            return {}
        for i in range(1, len(configs)):
            self.faults.append(
                f"{LLM_CONFIGS}[{i}]: an application serves one model; give each an application with a name and a route_prefix "
                "of its own"
            )
        config = self._loaded(configs[0])
        if config is not None:
            self._config(f"{LLM_CONFIGS}[0]", config)
        ingress = self._serve_options("ingress_deployment_config", arguments.get("ingress_deployment_config"))
        if ingress:
            self._settings["ingress_config"] = {**self._settings.get("ingress_config", {}), **ingress}
        for name in ("deployment_config", "ingress_config"):
            if isinstance(own.get(name), dict):
                own[name] = {**self._settings.get(name, {}), **own[name]}
        return {**self._settings, **own}

    def _loaded(self, config: Any) -> dict[str, Any] | None:
        path = f"{LLM_CONFIGS}[0]"
        if isinstance(config, str):
            try:
                config = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                self.faults.append(f"{path}: {config!r} is no YAML file that can be read")
                return None
        if not isinstance(config, dict):
            self.faults.append(f"{path}: needs a mapping")
            return None
        return config

    def _config(self, path: str, config: dict[str, Any]) -> None:
        readers = {
            "model_loading_config": self._model,
            "engine_kwargs": self._engine,
            "accelerator_type": self._accelerator_type,
            "accelerator_config": self._accelerator,
            "placement_group_config": self._placement,
            "deployment_config": self._deployment,
            "experimental_configs": self._experiments,
        }
        if config.get("model_loading_config") is None:
            self.faults.append(f"{path}.model_loading_config is missing")
        for name, value in config.items():
            if name in readers:
                if value is not None:
                    readers[name](f"{path}.{name}", value)
            elif name not in CONFIG_ELSEWHERE:
                self._unknown(f"{path}.{name}", name, [*readers, *CONFIG_ELSEWHERE])
        self._elsewhere(f"{path}.", config, CONFIG_ELSEWHERE)

    def _model(self, path: str, value: Any) -> None:
        config = self._mapping(path, value, ("model_id", "model_source", "tokenizer_source"))
        name, source = config.get("model_id"), config.get("model_source")
        if not isinstance(name, str):
            self.faults.append(f"{path}.model_id: needs a name, got {name!r}")
            return
        if isinstance(source, dict) or (isinstance(source, str) and "://" in source):
            self.faults.append(
                f"{path}.model_source: buckets are not read; give a directory that every node has, or a Hugging Face id"
            )
        elif source is not None and not isinstance(source, str):
            self.faults.append(
                f"{path}.model_source: needs a directory, a GGUF file or a Hugging Face id, got {source!r}"
            )
        else:
            self._settings |= {"model": source or name, "model_id": name}
        if config.get("tokenizer_source") is not None:
            self._settings["tokenizer"] = config["tokenizer_source"]

    def _engine(self, path: str, value: Any) -> None:
        arguments = self._mapping(path, value, None)
        for name, given in arguments.items():
            self._engine_argument(f"{path}.{name}", str(name).replace("-", "_"), given)

    def _engine_argument(self, path: str, name: str, value: Any) -> None:
        if name in MEANS_NOTHING:
            return
        if name in ENGINE_ELSEWHERE:
            self._elsewhere(path.removesuffix(name), {name: value}, ENGINE_ELSEWHERE)
            return
        ours = ALIASES.get(name, name)
        if ours not in _ENGINE_SETTINGS:
            self._unknown(path, name, [*_ENGINE_SETTINGS, *ENGINE_ELSEWHERE, *MEANS_NOTHING])
        elif value is not None:
            self._settings[ours] = VALUES.get((ours, value), value) if isinstance(value, str) else value

    def _accelerator_type(self, path: str, value: Any) -> None:
        if str(value).startswith(("TPU", "google-tpu")):
            self.faults.append(f"{path}: TPUs are not supported; allowed: NVIDIA GPUs, or nothing for the CPU")
            return
        self._settings |= {"accelerator_type": "A10G" if value == "A10" else value}
        self._settings.setdefault("device", "gpu")

    def _accelerator(self, path: str, value: Any) -> None:
        config = self._mapping(path, value, ("kind", "topology"))
        kind = config.get("kind")
        if kind not in ("cpu", "gpu"):
            self.faults.append(f"{path}.kind: got {kind!r}, allowed: 'cpu', 'gpu'")
        else:
            self._settings["device"] = kind

    def _placement(self, path: str, value: Any) -> None:
        config = self._mapping(path, value, ("bundle_per_worker", "bundles", "strategy"))
        bundles = config.get("bundles")
        where = f"{path}.bundles[0]"
        if bundles is None:
            bundles, where = [config.get("bundle_per_worker") or {}], f"{path}.bundle_per_worker"
        if not isinstance(bundles, list) or len(bundles) != 1 or not isinstance(bundles[0], dict):
            self.faults.append(f"{path}.bundles: {ONE_DEVICE}; allowed: one bundle")
            return
        for name, amount in bundles[0].items():
            is_number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
            if name == "CPU" and is_number:
                self._settings |= {"runner_num_cpus": float(amount)} if amount else {}
            elif name == "GPU" and is_number and amount <= 1:
                self._settings["runner_num_gpus"] = float(amount)
                self._settings.setdefault("device", "gpu" if amount else "cpu")
            elif name == "GPU":
                self.faults.append(f"{where}.GPU: {ONE_DEVICE}; allowed: up to 1")
            else:
                self.faults.append(f"{where}.{name}: a runner takes CPU and GPU; accelerator_type names a kind of GPU")

    def _deployment(self, path: str, value: Any) -> None:
        options = self._serve_options(path, value)
        router = options.get("request_router_config")
        if isinstance(router, dict) and str(router.get("request_router_class", "")).startswith("ray."):
            self.faults.append(
                f"{path}.request_router_config: Ray's routers know no engines of this kind; routing_policy, beside "
                f"{LLM_CONFIGS}, chooses one"
            )
        if options:
            self._settings["deployment_config"] = options

    def _experiments(self, path: str, value: Any) -> None:
        config = self._mapping(path, value, ("num_ingress_replicas", *EXPERIMENTS_ELSEWHERE))
        if config.get("num_ingress_replicas") is not None:
            self._settings["ingress_config"] = {"num_replicas": config["num_ingress_replicas"]}
        self._elsewhere(f"{path}.", config, EXPERIMENTS_ELSEWHERE)

    def _serve_options(self, path: str, value: Any) -> dict[str, Any]:
        options = self._mapping(path, value, None)
        for name in sorted(set(options) - SERVE_OPTIONS):
            if name == "name":
                self.faults.append(f"{path}.name: deployments keep their names here; leave it out")
            else:
                self._unknown(f"{path}.{name}", name, SERVE_OPTIONS)
        return {name: option for name, option in options.items() if option is not None}

    def _mapping(self, path: str, value: Any, allowed: tuple[str, ...] | None) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.faults.append(f"{path}: needs a mapping, got {value!r}")
            return {}
        for name in value:
            if allowed is not None and name not in allowed:
                self._unknown(f"{path}.{name}", name, allowed)
        return value

    def _elsewhere(self, path: str, values: Mapping[str, Any], table: Mapping[str, Elsewhere]) -> None:
        for name, value in values.items():
            where = table.get(name)
            if where is not None and not is_same(where, value):
                self.faults.append(f"{path}{name}: {where.instead}")

    def _unknown(self, path: str, name: str, known: Any) -> None:
        self.faults.append(f"{path}: nothing here has this name{nearest(str(name), map(str, known))}")


def _plain(value: Any) -> Any:
    """Objects of Ray's own classes as what they were made of."""
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value
