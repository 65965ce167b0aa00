"""``python docs/lab/passes_between_lines.py``: by how much a later request begins first where several engines are full.

The rule of arrivals and the moves are those of ``cluster``, and moves take no time: to places as these open, into one line four
times a second. Arrivals are told what was so before their crowd of eight came, so that requests which come together stand in the
lines of several engines. Crowds come at random: for a minute 1.2 times as many requests as the engines can answer, then 0.8 times
as many. The load is the same with and without moves into one line.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster.routing.lines import Line, open_to_arrival
from cluster.scaling.balance import MIN_WAIT_S, BalanceView, line_moves, moves

MEAN_ANSWER_S, SECONDS, CROWD, WORD_S, LONG_QUEUE = 5.0, 600.0, 8, 0.25, 10**6


class Request(NamedTuple):
    """``takes_s`` once it has begun; ``taste`` decides between engines that are equal otherwise."""

    came_at: float
    number: int
    takes_s: float
    taste: float


class Fleet:
    """Engines, who runs in them, and who waits.

    Attributes:
        begun: (when it began, who), in order.
        num_moves: "place" or "line": how many came there from another engine.
        changed_lines: by number of a request, how often.
    """

    def __init__(self, num_engines: int, num_slots: int, max_queued: int) -> None:
        self.names = [str(n) for n in range(num_engines)]
        self.num_slots, self.max_queued, self.now = num_slots, max_queued, 0.0
        self.running = dict.fromkeys(self.names, 0)
        self.lines: dict[str, list[Request]] = {name: [] for name in self.names}
        self.ends: list[tuple[float, str]] = []
        self.begun: list[tuple[float, Request]] = []
        self.num_moves: Counter[str] = Counter()
        self.changed_lines: Counter[int] = Counter()

    def open_places(self, name: str) -> int:
        return max(0, self.num_slots - self.running[name] - len(self.lines[name]))

    def free(self, name: str) -> int:
        return self.num_slots + self.max_queued - self.running[name] - len(self.lines[name])

    def wait_s(self, name: str) -> float:
        line = self.lines[name]
        return max(MIN_WAIT_S, self.now - line[0].came_at) if line else 0.0

    def said(self) -> list[Line]:
        return [
            Line(
                name,
                open_places=self.open_places(name),
                length=len(self.lines[name]),
                free=self.free(name),
                waited_s=self.wait_s(name),
            )
            for name in self.names
        ]

    def views(self) -> list[BalanceView]:
        return [
            BalanceView(
                name,
                len(self.lines[name]),
                self.wait_s(name),
                self.open_places(name),
                len(self.lines[name]),
                self.wait_s(name),
                self.max_queued // 2 - len(self.lines[name]),
            )
            for name in self.names
        ]

    def begin(self, name: str, request: Request) -> None:
        self.running[name] += 1
        self.begun.append((self.now, request))
        heapq.heappush(self.ends, (self.now + request.takes_s, name))

    def fill(self) -> None:
        """Each engine begins its own, then those of others move to places."""
        for name in self.names:
            while self.lines[name] and self.running[name] < self.num_slots:
                self.begin(name, self.lines[name].pop(0))
        for move in moves(self.views()):
            for _ in range(move.num_requests):
                self.begin(move.target, self.lines[move.source].pop(0))
            self.num_moves["place"] += move.num_requests

    def come(self, crowd: list[Request]) -> None:
        said, sent = self.said(), Counter[str]()
        for request in crowd:
            known = [line._replace(num_sent=sent[line.engine_id]) for line in said]
            open_to = [name for name in sorted(open_to_arrival(known)) if self.free(name) > 0]
            if not open_to:  # refused
                continue
            busy = {name: self.running[name] + len(self.lines[name]) for name in open_to}
            chosen = min(open_to, key=lambda name: (busy[name], (request.taste + int(name) * 0.37) % 1))
            self.lines[chosen].append(request)
            sent[chosen] += 1

    def into_one_line(self) -> None:
        for move in line_moves(self.views()):
            brought = self.lines[move.source][: move.num_requests]
            del self.lines[move.source][: move.num_requests]
            self.lines[move.target] = sorted(self.lines[move.target] + brought)
            self.num_moves["line"] += move.num_requests
            self.changed_lines.update(request.number for request in brought)


def load(num_engines: int, num_slots: int, rng: random.Random) -> list[list[Request]]:
    """The crowds in order."""
    now, crowds = 0.0, []
    while True:
        rate = (1.2 if now % 120 < 60 else 0.8) * num_engines * num_slots / MEAN_ANSWER_S / CROWD
        now += rng.expovariate(rate)
        if now >= SECONDS:
            return crowds
        first = len(crowds) * CROWD
        crowds.append([Request(now, first + i, rng.expovariate(1 / MEAN_ANSWER_S), rng.random()) for i in range(CROWD)])


def run(fleet: Fleet, crowds: list[list[Request]], in_one_line: bool) -> list[float]:
    """Of each request that waited, by how many seconds the youngest had come later that began before it; 0 without one."""
    coming, next_word = list(reversed(crowds)), WORD_S
    while coming or fleet.ends:
        next_crowd = coming[-1][0].came_at if coming else float("inf")
        next_end = fleet.ends[0][0] if fleet.ends else float("inf")
        fleet.now = min(next_word, next_crowd, next_end)
        if fleet.now == next_word:
            next_word += WORD_S
            if in_one_line:
                fleet.into_one_line()
        elif fleet.now == next_crowd:
            fleet.come(coming.pop())
        else:
            fleet.running[heapq.heappop(fleet.ends)[1]] -= 1
        fleet.fill()
    youngest, found = 0.0, []
    for began_at, request in fleet.begun:
        if began_at > request.came_at:
            found.append(max(0.0, youngest - request.came_at))
        youngest = max(youngest, request.came_at)
    return found


def compare(num_engines: int, num_slots: int, max_queued: int, num_seeds: int) -> None:
    """Two lines: as it was, and with moves into one line."""
    for in_one_line in (False, True):
        found: list[float] = []
        num_moves: Counter[str] = Counter()
        most = 0
        for seed in range(num_seeds):
            fleet = Fleet(num_engines, num_slots, max_queued)
            found += run(fleet, load(num_engines, num_slots, random.Random(seed)), in_one_line)
            num_moves += fleet.num_moves
            most = max(most, *fleet.changed_lines.values(), 0)
        found.sort()
        p95, p99, p999 = (found[int(share * len(found))] for share in (0.95, 0.99, 0.999))
        queue = "" if max_queued == LONG_QUEUE else f", {max_queued} queued at most"
        print(
            f"{num_engines} engines of {num_slots} slots{queue}, {'into one line' if in_one_line else 'several lines'}: "
            f"{len(found)} waited; a later one began first by p95 {p95:.2f}, p99 {p99:.2f}, p99.9 {p999:.2f}, longest "
            f"{found[-1]:.2f} s; {num_moves['place']} moved to places, {num_moves['line']} to lines, each {most} times at most",
            flush=True,
        )


def main(num_seeds: int = 10) -> None:
    """For each size of a fleet, with queues that nobody fills and, of the largest, with those of the default."""
    for num_engines, num_slots in ((2, 4), (2, 8), (4, 8), (8, 8)):
        compare(num_engines, num_slots, LONG_QUEUE, num_seeds)
    compare(8, 8, 256, num_seeds)


if __name__ == "__main__":
    main()
