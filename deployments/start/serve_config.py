"""The Serve config of ``bireme serve``: what a file or settings say, and HTTP on this machine alone unless they say otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from cluster import wording
from cluster.config import DEFAULT_MODEL, LLMConfig
from cluster.errors import BiremeError
from deployments.start.app_arguments import AppArguments, SettingsError, hold_keys
from deployments.start.run_files.key_file import write_keys
from deployments.start.settings_names import Say, nearest, split_settings
from deployments.start.vllm_names import NUM_REPLICAS

BUILDER = "deployments.llm:build_openai_app"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
# What Ray Serve calls an application that was given no name.
UNNAMED = "default"
_CONFIGS = Path(__file__).resolve().parents[2] / "ray_configs"


def serve_config(
    settings: list[str], host: str | None = None, port: int | None = None, say: Say = str
) -> dict[str, Any]:
    """The config as Ray Serve reads it.

    Args:
        settings: a Serve config file, the name of one in ``ray_configs``, or a model; and settings, NAME=VALUE or --name
            value, which come before what a file says.
        host, port: of the HTTP API; None leaves what the file says, else the default.
        say: as of ``split_settings``.

    Raises:
        BiremeError: neither; one sentence that says why.
    """
    words, arguments = split_settings(settings, say)
    if len(words) > 1:
        raise BiremeError(f"{words[1]!r} is no setting of the form NAME=VALUE; one model or file is served")
    what = words[0] if words else None
    if what is not None and _is_config_file(what):
        config = _read(Path(what))
    elif what in named_configs():
        config = _with_own_files(_read(_CONFIGS / f"{what}.yaml"))
    else:
        if what is not None:
            arguments = {"model": _checked_model(what), **arguments}
        config = _application({})
    if arguments:
        config = _with_settings(config, arguments)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    http = {"host": DEFAULT_HOST, "port": DEFAULT_PORT, **(config.get("http_options") or {}), **given}
    if not isinstance(http["port"], int) or not 0 < http["port"] < 65536:
        raise BiremeError(f"http_options.port: got {http['port']!r}, allowed: 1 to 65535")
    return {**config, "http_options": http}


def _is_config_file(what: str) -> bool:
    path = Path(what)
    if not path.is_file() or path.suffix.lower() in (".gguf", ".safetensors"):
        return False
    # A model's hyperparameters are JSON, and so may a Serve config be, which is YAML then.
    return path.suffix.lower() != ".json" or '"applications"' in path.read_text(encoding="utf-8", errors="replace")


def _checked_model(model: str) -> str:
    """``model``, unless it is nothing that could be one."""
    path = Path(model).expanduser()
    looks_local = model.startswith((".", "/", "~")) or path.suffix.lower() in (".gguf", ".yaml", ".yml", ".json")
    if path.exists() or model == DEFAULT_MODEL or ("/" in model and not looks_local):
        return model
    if looks_local and path.parent.is_dir():
        near = nearest(path.name, (found.name for found in path.parent.iterdir()))
        raise BiremeError(f"{model} does not exist{near}", "model")
    near = nearest(model, [DEFAULT_MODEL, *named_configs()])
    raise BiremeError(
        f"{model!r} is neither a file, nor the name of a config ({', '.join(named_configs())}), nor a model ({DEFAULT_MODEL}, a "
        f"GGUF file, a directory, a Hugging Face id), nor a setting of the form NAME=VALUE{near}",
        "model",
    )


def _application(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "proxy_location": "HeadOnly",
        "applications": [{"name": UNNAMED, "route_prefix": "/", "import_path": BUILDER, "args": arguments}],
    }


def _with_settings(config: dict[str, Any], settings: dict[str, str]) -> dict[str, Any]:
    """``config`` with ``settings`` in place of its application's."""
    applications = config["applications"]
    if len(applications) != 1:
        raise BiremeError(
            f"there are {len(applications)} applications in the file: settings on the command line fit one"
        )
    arguments: dict[str, Any] = dict(applications[0].get("args") or {})
    arguments |= {name: value for name, value in settings.items() if name != NUM_REPLICAS}
    if NUM_REPLICAS in settings:
        count = settings[NUM_REPLICAS]
        options = arguments.get("deployment_config") or {}
        if isinstance(options, str):
            try:
                options = json.loads(options)
            except ValueError:
                options = None
        if not isinstance(options, dict):
            raise BiremeError(
                "deployment_config: needs a mapping, to which num_replicas can be added", "deployment_config"
            )
        if not count.isdecimal() or int(count) < 1:
            raise BiremeError(f"num_replicas: got {count!r}, allowed: 1 and more", NUM_REPLICAS)
        arguments["deployment_config"] = {**options, NUM_REPLICAS: int(count)}
    return {**config, "applications": [{**applications[0], "args": arguments}]}


def named_configs() -> list[str]:
    """Names of the configs that come with the project, in a checkout or installed."""
    return sorted(path.stem for path in _CONFIGS.glob("*.yaml"))


def _with_own_files(config: dict[str, Any]) -> dict[str, Any]:
    """A config of ours, whose ``model`` is a path from the folder above, wherever this process was started."""
    for application in config["applications"]:
        model = _CONFIGS.parent / application["args"]["model"]
        if model.exists():
            application["args"]["model"] = str(model)
    return config


def configured_model(config: dict[str, Any]) -> LLMConfig:
    """The settings of the first application in ``config``.

    Raises:
        BiremeError: they are not valid.
    """
    return _settings_of(config["applications"][0])


def configured_models(config: dict[str, Any]) -> list[tuple[dict[str, Any], LLMConfig]]:
    """The applications of this project in ``config``, each with its settings.

    Raises:
        BiremeError: those of one are not valid, or none is of this project.
    """
    applications = config["applications"]
    found = []
    for number, application in enumerate(applications):
        if not _is_ours(application):
            continue
        try:
            settings = _settings_of(application)
            found.append((application, settings))
            _check_deployments(application.get("deployments"), settings)
        except BiremeError as error:
            where = f"application {name_of(application, number)}: " if len(applications) > 1 else ""
            raise BiremeError(f"{where}{error.message}") from None
    if not found:
        raise BiremeError(f"no application has the import_path {BUILDER}", "import_path")
    return found


def start_timeouts(config: dict[str, Any], models: Iterable[LLMConfig]) -> dict[str, float]:
    """``start_timeout_s`` of each application, by the name that Serve has for it; those that are not of this project have the
    longest of the others.

    Args:
        models: of those of this project, in the order of ``config``.
    """
    times_s = [model.start_timeout_s for model in models]
    ours = iter(times_s)
    return {
        application.get("name", UNNAMED): next(ours) if _is_ours(application) else max(times_s)
        for application in config["applications"]
    }


def name_of(application: dict[str, Any], number: int) -> str:
    """What a person calls the application: its name, else its place in the file."""
    return str(application.get("name") or f"number {number + 1}")


def _settings_of(application: dict[str, Any]) -> LLMConfig:
    try:
        settings = AppArguments.with_keys(application.get("args") or {})
        for name in ("deployment_config", "ingress_config"):
            if getattr(settings, name):
                from deployments.start.serve_options import (
                    check_serve_options,  # imports Ray Serve, which takes a second
                )

                check_serve_options(name, getattr(settings, name))
        return settings
    except SettingsError as error:
        raise BiremeError(error.message) from None


def _check_deployments(deployments: Any, settings: LLMConfig) -> None:
    """Those that an application of a Serve config names, with options that come before its arguments: of ``settings``."""
    if not isinstance(deployments, list | None) or not all(isinstance(one, dict) for one in deployments or []):
        raise BiremeError("deployments: must be a list of mappings, each with a name and options of Ray Serve")
    for number, deployment in enumerate(deployments or []):
        from deployments.start.serve_options import check_serve_options  # imports Ray Serve, which takes a second

        options = {name: value for name, value in deployment.items() if name != "name"}
        try:
            check_serve_options(f"deployments[{number}]", options)
        except SettingsError as error:
            raise BiremeError(error.message) from None
        count, by = options.get(NUM_REPLICAS), _number_follows(deployment.get("name"), settings)
        if isinstance(count, int) and by and "autoscaling_config" not in options:
            raise BiremeError(
                f"deployments[{number}].{NUM_REPLICAS}: Ray Serve ignores it, because {by}; "
                f"with autoscaling_config: null beside it there are {count}"
            )


def _number_follows(deployment: Any, settings: LLMConfig) -> str:
    """Why the number of a deployment's replicas changes by itself; empty if it does not."""
    if deployment == "OpenAiIngress":
        if settings.ingress_config.get("autoscaling_config"):
            return "ingress_config has an autoscaling_config"
        is_open = not {NUM_REPLICAS, "autoscaling_config"} & settings.ingress_config.keys()
        return "the number of ingresses follows the load" if is_open else ""
    if deployment == "LLMServer":
        if settings.autoscaling is not None:
            return "autoscaling says how many engines there are"
        return (
            "deployment_config has an autoscaling_config"
            if settings.deployment_config.get("autoscaling_config")
            else ""
        )
    return ""


def without_keys(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``config`` as Ray Serve may see it, which logs and shows it: API keys in ``args`` are put into files in ``folder``, and the
    names of these take their place.

    Raises:
        BiremeError: settings with keys are not valid.
    """
    applications = list(config["applications"])
    for i, application in enumerate(applications):
        if not has_keys(application):
            continue
        settings = configured_model({"applications": [application]})
        file = folder / f"api-keys-{i}"
        write_keys(file, settings.api_keys)
        arguments = {name: value for name, value in application["args"].items() if name != "api_keys"}
        applications[i] = {**application, "args": {**arguments, "api_keys_file": str(file)}}
    return {**config, "applications": applications}


def named_after_model(config: dict[str, Any], model_id: str) -> dict[str, Any]:
    """``config`` whose one application, where it has no name of its own, has the name of the model, for dashboard, logs, metrics.

    The name is part of file names, so that signs which have a meaning there become dashes.
    """
    first, *others = config["applications"]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model_id).strip("-.")
    if others or first.get("name", UNNAMED) != UNNAMED or not name:
        return config
    return {**config, "applications": [{**first, "name": name}]}


def has_keys(application: Any) -> bool:
    """Whether there are API keys among the arguments of this project's application."""
    return _is_ours(application) and hold_keys(application.get("args"))


def _is_ours(application: Any) -> bool:
    # Ray Serve takes a point for the colon, too.
    return isinstance(application, dict) and str(application.get("import_path")).replace(":", ".") == BUILDER.replace(
        ":", "."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BiremeError(f"{path} is not YAML: {_where(error)}") from None
    applications = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(applications, list) or not applications or not isinstance(applications[0], dict):
        raise BiremeError(
            f"{path} is not a Serve config: it has no list named applications; settings are the args of one, or stand on the "
            "command line as NAME=VALUE"
        )
    for application in applications:
        builder = str(application.get("import_path")) if isinstance(application, dict) else ""
        if builder.startswith("ray.serve.llm"):
            raise BiremeError(
                f"{path}: import_path is {builder}, Ray Serve LLM's own; with {BUILDER} in its place llm_configs are read here",
                "import_path",
            )
        if builder.replace(":", ".") != BUILDER.replace(":", ".") and wording.nearest(builder, [BUILDER]):
            raise BiremeError(f"{path}: import_path: got {builder!r}; did you mean {BUILDER}?", "import_path")
    if not isinstance(config.get("http_options") or {}, dict):
        raise BiremeError(f"{path}: http_options: got {config['http_options']!r}, needs a mapping")
    return config


def _where(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong, and where, without the text of that place: it may be a key."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    is_about_signs = isinstance(error, (yaml.scanner.ScannerError, yaml.parser.ParserError))
    what = str(getattr(error, "problem", None)) if is_about_signs else "it cannot be read"
    mark = getattr(error, "problem_mark", None)
    return what if mark is None else f"{what} in line {mark.line + 1}, column {mark.column + 1}"
