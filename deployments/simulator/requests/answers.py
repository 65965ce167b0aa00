"""What has become of each request of a simulation: when it began and ended, and what the ingresses count of that."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deployments.simulator.arrivals import Array, Arrivals
from deployments.simulator.setup import SimulatorSettings


class Task(NamedTuple):
    """A request on its way to an engine.

    Attributes:
        request: index among those of the recording's requests.
        done: tokens that its client has; another engine goes on behind them, after it has computed them anew.
        is_moved: a place was kept for it, which waited in another engine; it moves no more.
    """

    request: int
    done: int = 0
    is_moved: bool = False


class Answers:
    """Of all requests of ``load``.

    Attributes:
        prompts, outputs: tokens by request.
        num_begun, num_ended: answers so far.
        met, missed: answers by objective (TTFT, TPOT), as ingresses count them.
    """

    def __init__(self, load: Arrivals, settings: SimulatorSettings) -> None:
        self._load, self._policy = load, settings.policy
        self.prompts: list[int] = load.prompt.astype(int).tolist()
        self.outputs: list[int] = load.output.astype(int).tolist()
        self._arrived: list[float] = load.at.tolist()
        count = len(self._arrived)
        self._began, self._ended = [np.inf] * count, [np.inf] * count
        self._tpot_s = settings.policy.slo_tpot_ms / 1e3
        self.num_begun = self.num_ended = 0
        self.met, self.missed = [0, 0], [0, 0]

    def begun(self, index: int, at: float) -> None:
        """Its first token is there; one that goes on elsewhere has it already."""
        if self._began[index] == np.inf:
            self._began[index] = at
            self.num_begun += 1
            (self.met if at - self._arrived[index] <= self._policy.slo_ttft_s else self.missed)[0] += 1

    def ended(self, index: int, at: float) -> None:
        """Its last token is there."""
        self._ended[index] = at
        self.num_ended += 1
        spent = at - self._began[index]
        (self.met if spent <= self._tpot_s * max(self.outputs[index] - 1, 1) else self.missed)[1] += 1

    def arrived_at(self, index: int) -> float:
        return self._arrived[index]

    @property
    def ttft_s(self) -> Array:
        return np.array(self._began) - self._load.at

    @property
    def tpot_s(self) -> Array:
        return (np.array(self._ended) - np.array(self._began)) / np.maximum(self._load.output - 1, 1)
