"""What an application that starts waits for, and why one has failed, in one sentence out of Ray Serve's status."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cluster.errors import CANNOT_SERVE

_LAST_ERROR = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Exit|Interrupt)\b(?:\(\w+\))?: .*)$")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MOST_CHARACTERS = 600


def what_failed(applications: Mapping[str, Any]) -> str | None:
    """Which applications (name: Ray Serve's overview) have failed for good, or would again if Serve tries once more, and their
    last errors; None if none has."""
    faults = []
    for name, application in applications.items():
        errors = [
            f"{deployment}: {last_error(found.message)}"
            for deployment, found in application.deployments.items()
            if found.status in ("DEPLOY_FAILED", "UNHEALTHY") or CANNOT_SERVE in found.message
        ]
        is_hopeless = application.status == "DEPLOYING" and any(
            CANNOT_SERVE in found.message for found in application.deployments.values()
        )
        if application.status == "DEPLOY_FAILED" or is_hopeless:
            faults.append(f"application {name} did not start: {'; '.join(errors) or last_error(application.message)}")
    return "; ".join(faults) or None


def not_ready(applications: Mapping[str, Any]) -> str | None:
    """What the applications still wait for; None once all run."""
    if not applications:
        return "Ray Serve has not begun with the application"
    waiting = []
    for name, application in applications.items():
        if application.status == "RUNNING":
            continue
        states = [
            f"{deployment}: {_replicas(found)}{f' ({last_error(found.message)})' if found.message else ''}"
            for deployment, found in application.deployments.items()
            if found.status != "HEALTHY"
        ]
        waiting.append(f"application {name}: {'; '.join(states) or 'its code is imported and built'}")
    return "; ".join(waiting) or None


def out_of_time(applications: Mapping[str, Any], patience_s: Mapping[str, float], waited_s: float) -> str | None:
    """What the first application waits for that was given less time than ``waited_s``; None while each has some left.

    Args:
        patience_s: of each application, by name (``start_timeout_s``).
    """
    for name in sorted(patience_s, key=patience_s.__getitem__):
        if patience_s[name] >= waited_s:
            return None
        waiting = not_ready({name: applications[name]} if name in applications else {})
        if waiting is not None:
            return f"not ready after start_timeout_s={patience_s[name]:g}: {waiting}"
    return None


def _replicas(deployment: Any) -> str:
    counts = {getattr(state, "value", state): count for state, count in deployment.replica_states.items() if count}
    return ", ".join(f"{count} {str(state).lower()}" for state, count in counts.items()) or "no replica yet"


def last_error(message: str) -> str:
    """The last error that a traceback names; a message without one as it is, in one line."""
    plain = _COLOUR.sub("", message)
    found = [match.group(1) for line in plain.splitlines() if (match := _LAST_ERROR.match(line.strip()))]
    return (found[-1] if found else " ".join(plain.split()))[:_MOST_CHARACTERS]
