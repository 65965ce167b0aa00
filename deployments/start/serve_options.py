"""Ray Serve options from a configuration, checked by Ray Serve's own models, with one sentence about what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve import Deployment
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from cluster.wording import nearest, setting_fault, setting_name
from deployments.start.app_arguments import SettingsError

# Ray Serve takes these from any number, so that true would be one replica and 2.9 an error of another kind.
_WHOLE_NUMBERS = frozenset(
    {
        "num_replicas",
        "max_ongoing_requests",
        "max_queued_requests",
        "min_replicas",
        "max_replicas",
        "initial_replicas",
    }
)
_NESTED: dict[str, Any] = {
    "autoscaling_config": AutoscalingConfig,
    "logging_config": LoggingConfig,
    "request_router_config": RequestRouterConfig,
}
_WITH_SWITCHES = frozenset({"enable_access_log", "logging_config", "ray_actor_options", "request_router_config"})


class _AnyDeployment:
    """Carries options while they are checked."""


def check_serve_options(setting: str, options: Mapping[str, Any]) -> None:
    """Check the value of ``deployment_config`` or ``ingress_config``.

    Raises:
        SettingsError: names ``setting``, the option and why it cannot be so.
    """
    _check_numbers(setting, options)
    for name, model in _NESTED.items():
        nested = options.get(name)
        if isinstance(nested, dict):
            allowed = sorted(field for field in model.model_fields if not field.startswith("_"))
            for option in sorted(set(map(str, nested)) - set(model.model_fields)):
                near = nearest(option, allowed)
                meant = f"; did you mean {near}?" if near else ""
                raise SettingsError(f"{setting}.{name}.{option} is no option{meant}; allowed: {', '.join(allowed)}")
            _check_numbers(f"{setting}.{name}", nested)
    # Ray Serve writes defaults into what it is given.
    with_options(serve.deployment(_AnyDeployment), setting, copy.deepcopy(dict(options)))


def with_options(deployment: Deployment, setting: str, options: Mapping[str, Any]) -> Deployment:
    """``deployment.options(**options)``.

    Raises:
        SettingsError: Ray Serve refuses them; ``setting`` is where they come from.
    """
    try:
        return deployment.options(**options)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise SettingsError(
            "; ".join(f"{setting_name((setting, *fault['loc']))}: {setting_fault(fault)}" for fault in faults)
        ) from None
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{setting}: {error}") from None


def _check_numbers(setting: str, options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        whole = name in _WHOLE_NUMBERS and value is not None and value != "auto"
        if (whole and type(value) is not int) or (isinstance(value, bool) and name not in _WITH_SWITCHES):
            kind = "an integer" if whole else "a number or a mapping"
            raise SettingsError(f"{setting}.{name} must be {kind}, got {value!r}")
