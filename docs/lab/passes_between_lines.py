"""``python docs/lab/passes_between_lines.py``: by how much a later request begins first where several engines are full.

The rule of arrivals and the moves are those of ``cluster``, and moves take no time. What engines say is as old as a crowd of
eight takes to come, so that requests which come together stand in the lines of several engines. Crowds come at random: for a
minute 1.2 times as many requests as the engines can answer, then 0.8 times as many.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster.routing.lines import Line, open_to_arrival
from cluster.scaling.balance import MIN_WAIT_S, BalanceView, moves

MEAN_ANSWER_S, SECONDS, CROWD = 5.0, 600.0, 8


def passes(num_engines: int, num_slots: int, rng: random.Random) -> list[float]:
    """Of each request that waited, by how many seconds the youngest had come later that began before it; 0 without one."""
    names = [str(n) for n in range(num_engines)]
    running, line = dict.fromkeys(names, 0), {name: deque[float]() for name in names}
    begun: list[tuple[float, float]] = []  # when it began, when it came
    ends: list[tuple[float, str]] = []
    now = next_arrival = 0.0

    def open_places(name: str) -> int:
        return max(0, num_slots - running[name] - len(line[name]))

    def begin(name: str, came_at: float) -> None:
        running[name] += 1
        begun.append((now, came_at))
        heapq.heappush(ends, (now + rng.expovariate(1 / MEAN_ANSWER_S), name))

    while next_arrival < SECONDS or ends:
        if next_arrival < SECONDS and (not ends or next_arrival <= ends[0][0]):
            now = next_arrival
            rate = (1.2 if now % 120 < 60 else 0.8) * num_engines * num_slots / MEAN_ANSWER_S / CROWD
            next_arrival = now + rng.expovariate(rate)
            said = [
                Line(
                    name,
                    True,
                    open_places(name),
                    0,
                    0,
                    len(line[name]),
                    0,
                    10**6,
                    now - line[name][0] if line[name] else 0.0,
                )
                for name in names
            ]
            sent = dict.fromkeys(names, 0)
            for _ in range(CROWD):
                open_to = sorted(open_to_arrival([one._replace(num_sent=sent[one.engine_id]) for one in said]))
                shortest = min(open_to, key=lambda name: (running[name] + len(line[name]), rng.random()))
                line[shortest].append(now)
                sent[shortest] += 1
        else:
            now, name = heapq.heappop(ends)
            running[name] -= 1
        for name in names:
            while line[name] and running[name] < num_slots:
                begin(name, line[name].popleft())
        views = [
            BalanceView(
                name, len(line[name]), max(MIN_WAIT_S, now - line[name][0]) if line[name] else 0.0, open_places(name)
            )
            for name in names
        ]
        for move in moves(views):
            for _ in range(move.num_requests):
                begin(move.target, line[move.source].popleft())
    youngest, found = 0.0, []
    for began_at, came_at in begun:
        if began_at > came_at:
            found.append(max(0.0, youngest - came_at))
        youngest = max(youngest, came_at)
    return found


def main() -> None:
    """A line for each size of a fleet."""
    for num_engines, num_slots in ((2, 4), (2, 8), (4, 8), (8, 8)):
        found = sorted(s for seed in range(10) for s in passes(num_engines, num_slots, random.Random(seed)))
        middle, p95 = found[len(found) // 2], found[int(0.95 * len(found))]
        what = f"{num_engines} engines of {num_slots} slots, {len(found)} requests waited"
        print(
            f"{what}: a later one began first by {middle:.2f} s in the middle, p95 {p95:.2f} s, longest {found[-1]:.2f} s"
        )


if __name__ == "__main__":
    main()
