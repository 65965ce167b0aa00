"""The Serve config of ``bireme serve``: what a file or settings say, and HTTP on this machine alone unless they say otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.config import LLMConfig
from cluster.errors import BiremeError
from deployments.app_arguments import AppArguments, SettingsError

BUILDER = "deployments.llm:build_openai_app"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000


def serve_config(settings: list[str], host: str | None = None, port: int | None = None) -> dict[str, Any]:
    """The config as Ray Serve reads it.

    Args:
        settings: one Serve config file, or settings of the form NAME=VALUE.
        host, port: of the HTTP API; None leaves what the file says, else the default.

    Raises:
        BiremeError: neither; one sentence that says why.
    """
    if len(settings) == 1 and Path(settings[0]).is_file():
        config = _read(Path(settings[0]))
    else:
        wrong = [item for item in settings if "=" not in item]
        if wrong:
            raise BiremeError(f"{wrong[0]!r} is neither a file nor a setting of the form NAME=VALUE")
        arguments = dict(item.split("=", 1) for item in settings)
        config = {
            "proxy_location": "HeadOnly",
            "applications": [
                {"name": "default", "route_prefix": "/", "import_path": BUILDER, "args": arguments},
            ],
        }
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    http = {"host": DEFAULT_HOST, "port": DEFAULT_PORT, **(config.get("http_options") or {}), **given}
    if not isinstance(http["port"], int) or not 0 < http["port"] < 65536:
        raise BiremeError(f"http_options.port: got {http['port']!r}, allowed: 1 to 65535")
    return {**config, "http_options": http}


def configured_model(config: dict[str, Any]) -> LLMConfig:
    """The settings of the first application in ``config``.

    Raises:
        BiremeError: they are not valid.
    """
    try:
        settings = AppArguments.model_validate(config["applications"][0].get("args") or {})
        for name in ("deployment_config", "ingress_config"):
            if getattr(settings, name):
                from deployments.serve_options import check_serve_options  # imports Ray Serve, which takes a second

                check_serve_options(name, getattr(settings, name))
        return settings
    except SettingsError as error:
        raise BiremeError(error.message) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BiremeError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    applications = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(applications, list) or not applications or not isinstance(applications[0], dict):
        raise BiremeError(f"{path} is not a Serve config: it has no list named applications")
    if not isinstance(config.get("http_options") or {}, dict):
        raise BiremeError(f"{path}: http_options: got {config['http_options']!r}, needs a mapping")
    return config
