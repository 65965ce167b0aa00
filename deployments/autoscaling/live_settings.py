"""The settings in force: the line of the configuration, and what a person has changed of it while the application runs."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from cluster.config import Autoscaling
from cluster.errors import BiremeError
from deployments.start.app_arguments import settings_message
from deployments.start.settings_names import nearest


def in_force(line: Autoscaling, entry: bytes | None) -> Autoscaling:
    """``line`` with the changes in ``entry``. Changes of another line are none: who changes the line means it.

    An entry that cannot be read counts for none, too.
    """
    if entry is None:
        return line
    try:
        found = json.loads(entry)
        if found["line"] != line.model_dump(mode="json"):
            return line
        return changed(line, found["changes"], line)
    except (BiremeError, ValueError, TypeError, KeyError):
        return line


def changes_entry(line: Autoscaling, settings: Autoscaling) -> bytes:
    """What makes ``settings`` of ``line``, for the store."""
    before, after = line.model_dump(mode="json"), settings.model_dump(mode="json")
    changes = {name: value for name, value in after.items() if value != before[name]}
    return json.dumps({"line": before, "changes": changes}).encode()


def changed(settings: Autoscaling, changes: dict[str, Any], line: Autoscaling) -> Autoscaling:
    """``settings`` with other values, where the application was started with ``line``.

    Raises:
        BiremeError: one of them is none; names it and says what is allowed.
    """
    allowed = list(Autoscaling.model_fields)
    for name in changes.keys() - set(allowed):
        raise BiremeError(f"unknown setting {name}{nearest(name, allowed)}; allowed: {', '.join(allowed)}", name)
    if line.min_replicas > 0 and changes.get("min_replicas") == 0:
        # Its ingresses have not looked into the model's files, from which they tell what it takes while there is no engine.
        raise BiremeError("min_replicas: 0 only where the application was started with 0", "min_replicas")
    try:
        return Autoscaling.model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        raise BiremeError(settings_message(error)) from None
