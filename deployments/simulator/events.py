"""What happens to a fleet besides its load: engines that die, nodes that are lost, notices of spot machines, a controller that
restarts. Read from a file of JSON lines, or given as ``name=value`` pairs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cluster.errors import BiremeError
from deployments.simulator.setup import SimulatorSettings

KINDS = ("death", "notice", "node_lost", "controller_restart")
STATES = ("kept", "lost")
# The fields that a kind has beside ``at`` and ``event``.
_FIELDS = {
    "death": ("engines",),
    "notice": ("engines", "deadline_s"),
    "node_lost": ("nodes",),
    "controller_restart": ("down_s", "state"),
}
_WHOLE = ("engines", "nodes")


@dataclass(frozen=True)
class Event:
    """One thing that happens.

    Attributes:
        at: seconds of the recording.
        event: ``death``: engines are gone with what they had; ``notice``: engines take nothing more, and are gone at
            the deadline;
            ``node_lost``: every engine of a node dies; ``controller_restart``: nothing is decided or started meanwhile.
        engines, nodes: how many, taken at random.
        deadline_s: from the notice until the machine is taken away.
        down_s: without a controller.
        state: whether what the policy remembers is kept, with its age, or lost.
    """

    at: float
    event: str
    engines: int = 1
    nodes: int = 1
    deadline_s: float = 120.0
    down_s: float = 5.0
    state: str = "kept"


def read_events(path: Path) -> tuple[Event, ...]:
    """Of a file of JSON lines.

    Raises:
        BiremeError: a line is none, or a field is wrong; names both.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BiremeError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}", "--events") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except ValueError:
            raise BiremeError(f"{path}, line {number}: want an object of JSON", "--events") from None
        found.append(event_of(given, f"{path}, line {number}", "--events"))
    return in_order(found)


def event_of_pairs(text: str) -> Event:
    """Of ``at=600 event=death engines=2``.

    Raises:
        BiremeError: a field is wrong; names it.
    """
    given: dict[str, Any] = {}
    for part in text.replace(",", " ").split():
        name, sign, value = part.partition("=")
        if not sign:
            raise BiremeError(f"--event: got {part!r}, want name=value", "--event")
        try:
            given[name] = float(value)
        except ValueError:
            given[name] = value
    return event_of(given, "--event", "--event")


def in_order(events: list[Event]) -> tuple[Event, ...]:
    return tuple(sorted(events, key=lambda event: event.at))


def event_of(given: Any, where: str, param: str) -> Event:
    """Of an object's fields, each checked.

    Raises:
        BiremeError: with ``where`` and the field.
    """
    if not isinstance(given, dict):
        raise BiremeError(f"{where}: want an object with at, event", param)
    kind = given.get("event")
    if kind not in KINDS:
        raise BiremeError(f"{where}: event: got {kind!r}, allowed: {', '.join(KINDS)}", param)
    allowed = ("at", "event", *_FIELDS[kind])
    for name in given:
        if name not in allowed:
            raise BiremeError(f"{where}: {name}: {kind} has no such field, allowed: {', '.join(allowed)}", param)
    if "at" not in given:
        raise BiremeError(f"{where}: at: is missing, allowed: seconds of the recording, at least 0", param)
    values: dict[str, Any] = {}
    for field in fields(Event):
        if field.name in given:
            values[field.name] = _checked(field.name, given[field.name], where, param)
    return Event(**values)


def _checked(name: str, value: Any, where: str, param: str) -> Any:
    if name == "event":
        return value
    if name == "state":
        if value not in STATES:
            raise BiremeError(f"{where}: state: got {value!r}, allowed: {', '.join(STATES)}", param)
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in _WHOLE:
        if not is_number or value < 1 or value != int(value):
            raise BiremeError(f"{where}: {name}: got {value!r}, allowed: whole numbers from 1", param)
        return int(value)
    if not is_number or value < 0:
        raise BiremeError(f"{where}: {name}: got {value!r}, allowed: seconds, at least 0", param)
    return float(value)


def engines_lost(event: Event, settings: SimulatorSettings) -> int:
    """Where engines are alike."""
    return event.nodes * settings.engines_per_node if event.event == "node_lost" else event.engines


def read_start_times(path: Path) -> tuple[float, ...]:
    """Measured seconds from a decision to an engine that serves: a JSON list, or one number a line.

    Raises:
        BiremeError: it is something else; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BiremeError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}", "--start-times") from None
    try:
        values = json.loads(text) if text.lstrip().startswith("[") else text.split()
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise BiremeError(f"{path}: want a JSON list of seconds, or one number a line", "--start-times") from None
    if not found or not all(math.isfinite(value) and value >= 0 for value in found):
        raise BiremeError(f"{path}: want at least one number of seconds, none below 0", "--start-times")
    return found
