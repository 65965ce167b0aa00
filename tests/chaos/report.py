"""What a scenario found, and the sum of several."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

# Seconds until the next token after a process died, and after one fell silent or went with its node.
DEATH_TARGET_S = 2.0
HANG_TARGET_S = 4.0
OVERLAPPED = " (another fault meanwhile)"


def target_s(label: str) -> float:
    """How long a stream may wait after the fault of that label."""
    return DEATH_TARGET_S if label.startswith("kill") else HANG_TARGET_S


@dataclass
class Report:
    """Counts, and seconds to the next token after each fault by what was hit.

    Attributes:
        missed: faults whose moment did not come; they are not counted.
        lost: requests of clients that take broken streams up, or that whole answers, which ended with an error.
        changed: requests whose answer differs from that of the undisturbed run.
        honest: requests of clients that take nothing up which ended with an error when a process between client and engines
            was hit.
        leaks: what was left behind.
        moves: requests that went from a full engine to one with a place, as far as ingresses that lived on have told.
        rpc_failures: calls that Ray failed on purpose; they are no part of ``faults``.
        recovery_s: of the streams that waited longer than a quarter of a second.
        late: of these, those that waited for longer than they should.
        grown: file descriptors and threads that a process of a kind had more after than before, at most.
    """

    seeds: list[int] = field(default_factory=list)
    faults: Counter = field(default_factory=Counter)
    missed: Counter = field(default_factory=Counter)
    ended: Counter = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    honest: int = 0
    refused: int = 0
    rpc_failures: int = 0
    moves: int = 0
    leaks: list[str] = field(default_factory=list)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    late: dict[str, list[float]] = field(default_factory=dict)
    grown: dict[str, list[int]] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.changed or self.leaks)

    @property
    def exit_code(self) -> int:
        """1 if anything was lost, changed or left, 2 if all that went wrong is that it took longer than it should."""
        return 1 if not self.is_clean else 2 if self.late else 0

    def note_growth(self, kind: str, descriptors: int, threads: int) -> None:
        known = self.grown.get(kind, [descriptors, threads])
        self.grown[kind] = [max(known[0], descriptors), max(known[1], threads)]

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> Report:
        values = json.loads(text)
        for name in ("faults", "missed", "ended"):
            values[name] = Counter(values[name])
        return cls(**values)

    @classmethod
    def total(cls, reports: Iterable[Report]) -> Report:
        """All of them as one."""
        total = cls()
        for one in reports:
            for name in ("seeds", "lost", "changed", "leaks"):
                getattr(total, name).extend(getattr(one, name))
            for name in ("faults", "missed", "ended"):
                getattr(total, name).update(getattr(one, name))
            total.honest += one.honest
            total.refused += one.refused
            total.rpc_failures += one.rpc_failures
            total.moves += one.moves
            for name in ("recovery_s", "late"):
                for what, seconds in getattr(one, name).items():
                    getattr(total, name).setdefault(what, []).extend(seconds)
            for kind, (descriptors, threads) in one.grown.items():
                total.note_growth(kind, descriptors, threads)
        return total

    def table(self) -> str:
        """Faults and recovery by kind, in Markdown; the phases of one process are one row."""
        lines = [
            "| fault | times | streams that waited | p50 | p95 | longest | longest, another fault meanwhile |",
            "|---|" + "---|" * 6,
        ]
        for kind, (count, alone, overlapped) in waits_by_kind(self).items():
            shares = [f"{_share(alone, share):.2f} s" for share in (0.5, 0.95, 1.0)] if alone else ["", "", ""]
            also = f"{max(overlapped):.2f} s" if overlapped else ""
            lines.append(f"| {kind} | {count} | {len(alone)} | {' | '.join(shares)} | {also} |")
        return "\n".join(lines)

    def __str__(self) -> str:
        faults = ", ".join(f"{n} {what}" for what, n in sorted(self.faults.items()))
        ended = ", ".join(f"{n} {kind}" for kind, n in sorted(self.ended.items()))
        lines = [
            (
                f"seeds {self.seeds}: {sum(self.faults.values())} faults ({faults}); "
                f"{sum(self.missed.values())} missed their moment; {self.rpc_failures} calls of Ray failed"
            ),
            (
                f"requests: {sum(self.ended.values())} ({ended}); lost {len(self.lost)}, changed {len(self.changed)}, plain "
                f"clients told of a break {self.honest}, connections refused {self.refused}, moved {self.moves}; "
                f"leaks {len(self.leaks)}"
            ),
        ]
        for what, seconds in sorted(self.recovery_s.items()):
            lines.append(
                f"next token after {what}: p50 {_share(seconds, 0.5):.2f} s, p95 {_share(seconds, 0.95):.2f} s, "
                f"longest {max(seconds):.2f} s ({len(seconds)} streams)"
            )
        for what, seconds in sorted(self.late.items()):
            lines.append(f"LATE {what}: {', '.join(f'{one:.2f} s' for one in sorted(seconds))}")
        grown = [f"{kind} {more[0]:+d} and {more[1]:+d}" for kind, more in sorted(self.grown.items())]
        lines.append(
            f"file descriptors and threads that one process has more than before: {', '.join(grown) or 'none'}"
        )
        lines += [f"LOST {item}" for item in self.lost] + [f"CHANGED {item}" for item in self.changed]
        return "\n".join([*lines, *(f"LEAK {item}" for item in self.leaks)])


def waits_by_kind(report: Report) -> dict[str, tuple[int, list[float], list[float]]]:
    """By kind of fault, the phases of one process together: how often it happened, the waits after it alone, and those during
    which another fault happened; seconds."""
    rows: dict[str, tuple[int, list[float], list[float]]] = {}
    for label, count in report.faults.items():
        found = rows.setdefault(_kind(label), (0, [], []))
        rows[_kind(label)] = (found[0] + count, *found[1:])
    for label, seconds in report.recovery_s.items():
        found = rows.setdefault(_kind(label.removesuffix(OVERLAPPED)), (0, [], []))
        found[2 if label.endswith(OVERLAPPED) else 1].extend(seconds)
    return dict(sorted(rows.items()))


def _share(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _kind(label: str) -> str:
    """A label without its phase."""
    head, _, tail = label.partition(" in ")
    _, marker, duration = tail.partition(" for ")
    return head + marker + duration if tail else head
