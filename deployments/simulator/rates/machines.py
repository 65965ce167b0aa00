"""Engines that are alike: how many serve and start, and what is paid for them."""

from __future__ import annotations

import numpy as np

from deployments.simulator.setup import SimulatorSettings


class Machines:
    """
    Attributes:
        ready: engines that serve.
        starting: when each will serve.
        leaving: when each will have gone; others go on with what it has in this model.
        paid_s, peak, num_starts, num_lost: engine-seconds so far; most engines paid for at once; starts; engines that were lost.
    """

    def __init__(self, initial: int, settings: SimulatorSettings, rng: np.random.Generator) -> None:
        self._settings, self._rng = settings, rng
        self.ready, self.starting, self.leaving = initial, list[float](), list[float]()
        self.paid_s, self.peak, self.num_starts, self.num_lost = 0.0, initial, 0, 0

    @property
    def size(self) -> int:
        """Engines that serve or start."""
        return self.ready + len(self.starting)

    def lose(self, count: int) -> float:
        """So many engines are gone; returns their share of those that served."""
        fewer = min(self.ready, count)
        share = fewer / max(self.ready, 1)
        self.ready -= fewer
        self.num_lost += fewer
        return share

    def serving(self, now: float, dt: float) -> float:
        """Engines on average over a window; those that become ready within it serve the rest of it. All of them are paid for."""
        due = [max(at, now) - now for at in self.starting if at < now + dt]
        self.starting = [at for at in self.starting if at >= now + dt]
        engines = self.ready + sum((dt - late) / dt for late in due)
        self.ready += len(due)
        self.paid_s += self.size * dt + sum(min(at - now, dt) for at in self.leaving)
        self.peak = max(self.peak, self.size + len(self.leaving))
        self.leaving = [at for at in self.leaving if at > now + dt]
        return engines

    def resize(self, wanted: int, now: float, drain_s: float) -> float:
        """Start or stop engines until ``wanted`` serve or start; one that leaves takes ``drain_s`` for what it has. Returns the
        share of those that served which leaves."""
        more, served = wanted - self.size, self.ready
        if more > 0:
            self.num_starts += more
            self.starting += [now + float(self._rng.choice(self._settings.start_times_s)) for _ in range(more)]
        elif more < 0:
            stopped = min(-more, len(self.starting))
            del self.starting[len(self.starting) - stopped :]
            self.ready -= -more - stopped
            self.leaving += [now + drain_s] * (-more - stopped)
        return (served - self.ready) / max(served, 1)
