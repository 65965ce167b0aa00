"""What an ingress tells the policy, as text, and how old it is where it is read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cluster.outputs import EngineLoad
from cluster.scaling.inputs import EngineSample, IngressLoad, ScalingInputs, TargetCount

# Nobody has renewed it for so long: the ingress has gone.
FORGOTTEN_S = 60.0


class Report(NamedTuple):
    """What an ingress said last, and how many seconds ago, as well as the reader can tell."""

    inputs: ScalingInputs
    age_s: float


def encoded(inputs: ScalingInputs) -> bytes:
    """Fields without their names, in their order."""
    return json.dumps(inputs, separators=(",", ":")).encode()


def decoded(text: bytes) -> ScalingInputs:
    """
    Raises:
        ValueError: it is none, or one of another version of this project.
    """
    try:
        ingress, engines = json.loads(text)
        *fields, ttft, tpot = ingress
        targets = [None if one is None else TargetCount(*one) for one in (ttft, tpot)]
        samples = (EngineSample(engine_id, _load(load), age_s) for engine_id, load, age_s in engines)
        return ScalingInputs(IngressLoad(*fields, *targets), tuple(samples))
    except TypeError as error:
        raise ValueError(str(error)) from None


def _load(fields: list) -> EngineLoad:
    if len(fields) != len(EngineLoad.__annotations__):
        raise ValueError(f"an engine's load has {len(EngineLoad.__annotations__)} fields, not {len(fields)}")
    load = EngineLoad(*fields)
    return load._replace(queue_time_counts=tuple(load.queue_time_counts))


class HeardReports:
    """The reports of all ingresses, each with the time when it was first heard.

    Clocks of machines differ, so what counts is when a report changed here: it is as old as the clocks say, but no older than the
    look before. Of the first one that cannot be said; then the clocks decide, whichever way they differ.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._now, self._wall = now, wall
        self._heard: dict[str, tuple[bytes, ScalingInputs, float]] = {}
        self._looked_at = now()

    def hear(self, entries: Mapping[str, bytes]) -> list[str]:
        """Take the entries as they are now; returns the names of those that nobody renews any more, which are left out."""
        for name in self._heard.keys() - entries.keys():
            del self._heard[name]
        gone, now, before = [], self._now(), self._looked_at
        self._looked_at = now
        for name, text in entries.items():
            heard = self._heard.get(name)
            if heard is None or heard[0] != text:
                try:
                    inputs = decoded(text)
                except ValueError:
                    self._heard.pop(name, None)
                    continue
                by_clocks_s = self._wall() - inputs.ingress.sampled_at
                age_s = abs(by_clocks_s) if heard is None else min(max(0.0, by_clocks_s), now - before)
                age_s = min(age_s, FORGOTTEN_S / 2)  # a wrong clock is no reason to forget it before it is renewed
                self._heard[name] = text, inputs, now - age_s
            if now - self._heard[name][2] > FORGOTTEN_S:
                gone.append(name)
                del self._heard[name]
        return gone

    def reports(self) -> dict[str, tuple[ScalingInputs, float]]:
        """By name: what was said, and when it was heard, of the clock ``now``."""
        return {name: (inputs, heard_at) for name, (_, inputs, heard_at) in self._heard.items()}
