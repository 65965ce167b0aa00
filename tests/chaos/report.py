"""What a scenario found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Report:
    """Counts, and seconds to the next token after each fault by what was hit.

    Attributes:
        lost: resuming requests that ended with an error.
        changed: requests whose answer differs from that of the undisturbed run.
        honest: plain requests that ended with an error, as they should when nobody takes them up.
        leaks: what was left behind.
    """

    seed: int
    faults: Counter = field(default_factory=Counter)
    ended: Counter = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    honest: int = 0
    refused: int = 0
    leaks: list[str] = field(default_factory=list)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            (
                f"seed {self.seed}: {sum(self.faults.values())} faults "
                f"({', '.join(f'{n} {what}' for what, n in sorted(self.faults.items()))})"
            ),
            (
                f"requests: {', '.join(f'{n} {kind}' for kind, n in sorted(self.ended.items()))}; "
                f"lost {len(self.lost)}, changed {len(self.changed)}, plain clients told of a break {self.honest}, "
                f"connections refused {self.refused}"
            ),
        ]
        for what, seconds in sorted(self.recovery_s.items()):
            ordered = sorted(seconds)
            p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
            lines.append(
                f"next token after {what}: p50 {ordered[len(ordered) // 2]:.2f} s, p95 {p95:.2f} s, "
                f"longest {ordered[-1]:.2f} s ({len(ordered)} streams)"
            )
        lines += [f"LOST {item}" for item in self.lost] + [f"CHANGED {item}" for item in self.changed]
        return "\n".join([*lines, *(f"LEAK {item}" for item in self.leaks)])
