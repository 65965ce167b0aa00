"""What goes wrong in a scenario, drawn from a seed so that it can be drawn again."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Most faults hit what computes and what answers; the control plane is hit too.
WEIGHTS = {"runner": 4, "engine": 3, "ingress": 2, "proxy": 1, "controller": 1}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        action: "kill" (SIGKILL) or "stop" (SIGSTOP, and SIGCONT after ``stopped_s``).
        target: kind of process, as in ``processes.TITLES``.
        pause_s: how long the load runs undisturbed before it.
        choice: which of the processes of that kind, as a share of their number.
    """

    action: str
    target: str
    pause_s: float
    choice: float
    stopped_s: float = 0.0


def draw_faults(seed: int, count: int, targets: dict[str, int] | None = None) -> list[Fault]:
    """The faults of a seed."""
    chance = random.Random(seed)
    weights = targets or WEIGHTS
    faults = []
    for _ in range(count):
        target = chance.choices(list(weights), list(weights.values()))[0]
        action = chance.choice(["kill", "kill", "stop"])
        stopped_s = chance.choice([0.5, 2.0, 6.0]) if action == "stop" else 0.0
        faults.append(Fault(action, target, chance.uniform(0.1, 1.5), chance.random(), stopped_s))
    return faults
