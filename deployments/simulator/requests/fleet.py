"""Engines that serve, start and leave: Serve's own rules of starting and stopping, the router, the balance of who waits, and what
happens to machines.

From no engine a request starts one without asking the policy. Who starts is stopped first, then engines of the nodes with the
fewest, the newest first, whatever they have to do, which they finish. An engine that dies loses its requests; others go on with
them once that is noticed.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from cluster.outputs import EngineLoad
from cluster.scaling.balance import MOST_OF_A_LINE, is_source, line_moves, moves
from deployments.simulator.events import Event
from deployments.simulator.requests.answers import Answers, Task
from deployments.simulator.requests.router import RoutedEngine, Router
from deployments.simulator.setup import SimulatorSettings


class Engine(RoutedEngine, Protocol):
    """An engine of either fidelity; times are seconds of the recording.

    Attributes:
        num_requests: that it has, running, waiting or on their way.
    """

    node: int

    @property
    def num_requests(self) -> int: ...

    def submit(self, task: Task, at: float) -> None:
        """It comes at that time, not before those submitted earlier."""

    def advance(self, then: float) -> None:
        """Compute until ``then``."""

    def give_up(self) -> list[Task]:
        """All that it has not finished; it is not used any more."""

    def take_waiting(self, count: int, in_line: bool = False) -> list[Task]:
        """Up to ``count`` requests that wait and may move, the first in the order of service; ``in_line``: no place is kept for
        them where they go."""

    def told(self) -> EngineLoad: ...


MakeEngine = Callable[[int, float, SimulatorSettings, Answers], Engine]


class Fleet:
    """All engines of a simulation.

    Attributes:
        ready: that take requests.
        leaving: that finish what they have.
        starting: when each will serve.
        held: requests that no engine has.
        paid_s, peak, num_starts, num_lost: engine-seconds so far; most engines paid for at once; starts; engines that were lost.
        sizes: (second, engines ready or starting) where that changed.

    Args:
        make: an engine of the fidelity wanted.
        initial: engines that serve from the beginning.
    """

    def __init__(self, settings: SimulatorSettings, answers: Answers, make: MakeEngine, initial: int) -> None:
        self._settings, self._answers, self._make = settings, answers, make
        self._rng = np.random.default_rng(settings.seed)
        self._router = Router(settings)
        self._names = 0
        self._per_node: Counter[int] = Counter()
        self._free_nodes: list[int] = []  # a heap; each as often as it has room for engines
        # In the order of their names, and of these the ones that have requests, by name: in a large fleet most have none.
        self.ready: list[Engine] = []
        self._busy: dict[int, Engine] = {}
        self.leaving: list[Engine] = []
        self.starting: list[float] = []
        self.held: list[Task] = []
        # Of engines that leave: until when they may finish what they have, and whether their machine is lost then.
        self._deadlines: list[tuple[float, Engine, bool]] = []
        self._returning: list[tuple[float, Task]] = []
        self._died_at: list[float] = []  # of engines that Serve has not replaced yet
        self.paid_s, self.peak, self.num_starts, self.num_lost = 0.0, initial, 0, 0
        self.sizes: list[tuple[float, int]] = [(0.0, initial)]
        for _ in range(initial):
            self._serve(0.0)

    @property
    def size(self) -> int:
        """Engines that serve or start."""
        return len(self.ready) + len(self.starting)

    # Time.

    def advance(self, now: float, then: float, newcomers: list[tuple[float, Task]]) -> None:
        """From ``now`` to ``then``, with the requests that come meanwhile, in order."""
        self._begin(now, then)
        self._route(now, newcomers)
        for engine in (*self._busy.values(), *self.leaving):
            engine.advance(then)
        self._busy = {name: engine for name, engine in self._busy.items() if engine.num_requests}
        num_paid = self.size + len(self.leaving)
        self.paid_s += num_paid * (then - now)
        self.peak = max(self.peak, num_paid)
        for engine in [engine for engine in self.leaving if not engine.num_requests]:
            self._gone(engine)
        if self._settings.balance:
            self._balance(then)

    def _begin(self, now: float, then: float) -> None:
        due = sorted(at for at in self.starting if at < then)
        if due:
            self.starting = [at for at in self.starting if at >= then]
        for at in due:
            self._serve(max(at, now))

    def _serve(self, at: float) -> None:
        engine = self._make(self._names, at, self._settings, self._answers)
        self._names += 1
        if not self._free_nodes:
            self._free_nodes = [len(self._per_node)] * self._settings.engines_per_node
        engine.node = heapq.heappop(self._free_nodes)
        self._per_node[engine.node] += 1
        self.ready.append(engine)

    def _gone(self, engine: Engine) -> None:
        self.leaving.remove(engine)
        self._per_node[engine.node] -= 1
        heapq.heappush(self._free_nodes, engine.node)
        self._deadlines = [deadline for deadline in self._deadlines if deadline[1] is not engine]

    # Requests.

    def _route(self, now: float, newcomers: list[tuple[float, Task]]) -> None:
        """As the router that serves would; without an engine they are held."""
        back = [(max(at, now), task) for at, task in self._returning if at <= now]
        self._returning = [(at, task) for at, task in self._returning if at > now]
        coming = [(now, task) for task in self.held] + newcomers
        self.held = [] if self.ready else [task for _, task in (*back, *coming)]
        if self.ready and (back or coming):
            self._router.place(now, self.ready, self._busy.values(), back, coming, self._num_tokens, self._submit)

    def _num_tokens(self, coming: tuple[float, Task]) -> int:
        task = coming[1]
        return self._answers.prompts[task.request] + task.done

    def _submit(self, engine: Engine, coming: tuple[float, Task]) -> None:
        at, task = coming
        engine.submit(task, at)
        self._busy[engine.name] = engine

    def _balance(self, now: float) -> None:
        """Requests that wait go where they begin at once, and else into one line (``cluster.scaling.balance``), as ingresses do
        it."""
        engines = {str(engine.name): engine for engine in (*self.leaving, *self._busy.values()) if engine.has_line}
        views = {name: engine.balance_view(now) for name, engine in engines.items()}
        if any(is_source(view) for view in views.values()):
            for engine in self.ready:
                if (name := str(engine.name)) not in views:
                    engines[name], views[name] = engine, engine.balance_view(now)
            views |= {
                str(e.name): views[str(e.name)]._replace(open_places=0) for e in self.leaving if str(e.name) in views
            }
            changed: set[str] = set()
            for source, target, count in moves(list(views.values())):
                self._move(engines[source], engines[target], count, now)
                changed |= {source, target}
            views |= {name: engines[name].balance_view(now) for name in changed}
        if sum(view.line_length > 0 for view in views.values()) > 1:
            leaving = {str(engine.name) for engine in self.leaving}
            for source, target, count in line_moves([view for name, view in views.items() if name not in leaving]):
                self._move(engines[source], engines[target], min(count, MOST_OF_A_LINE), now, in_line=True)

    def _move(self, source: Engine, target: Engine, count: int, now: float, in_line: bool = False) -> None:
        for task in source.take_waiting(count, in_line):
            self._submit(target, (now, task))

    # Starting and stopping.

    def resize(self, wanted: int, now: float, decided_at: float, not_before: float = 0.0) -> None:
        """Start or stop engines until ``wanted`` serve or start. What replaces one that died was decided for long ago.

        Args:
            not_before: nothing was started before, because the controller was away.
        """
        more = wanted - self.size
        died_at, self._died_at = self._died_at[: max(more, 0)], []
        if more == 0:
            return
        if more > 0:
            self.num_starts += more
            replacing, starting = self._settings.replace_times_s, self._settings.start_times_s
            self.starting += [max(at, not_before) + self._drawn(replacing) for at in died_at]
            begun_at = max(decided_at, not_before)
            self.starting += [begun_at + self._drawn(starting) for _ in range(more - len(died_at))]
        if more < 0:
            self.starting.sort()
            stopped = min(-more, len(self.starting))
            del self.starting[len(self.starting) - stopped :]
            if -more > stopped:
                leaving = self._first_to_leave(-more - stopped)
                self._leave(leaving)
                self._deadlines += [(now + self._settings.drain_timeout_s, engine, False) for engine in leaving]
        self._changed(now)

    def _first_to_leave(self, count: int) -> list[Engine]:
        """In the order of Serve's ``DeploymentScheduler._get_replicas_to_stop``, which looks at no load."""
        of_nodes: dict[int, list[Engine]] = {}
        for engine in reversed(self.ready):
            of_nodes.setdefault(engine.node, []).append(engine)
        # Of nodes with as many the one with the newest engine.
        return [engine for engines in sorted(of_nodes.values(), key=len) for engine in engines][:count]

    def _drawn(self, times_s: Sequence[float]) -> float:
        return float(self._rng.choice(times_s))

    def _changed(self, now: float) -> None:
        self.sizes.append((now, self.size))

    def _leave(self, engines: Sequence[Engine]) -> None:
        names = {engine.name for engine in engines}
        self.ready = [engine for engine in self.ready if engine.name not in names]
        for engine in engines:
            self._busy.pop(engine.name, None)
        self.leaving += engines

    # What happens to machines.

    def happens(self, event: Event, now: float) -> None:
        """An event of machines."""
        if event.event == "node_lost":
            nodes = sorted(node for node, count in self._per_node.items() if count)
            lost = self._rng.permutation(nodes)[: event.nodes].tolist()
            for engine in [engine for engine in (*self.ready, *self.leaving) if engine.node in lost]:
                self._die(engine, now)
        else:
            chosen = self._rng.permutation(len(self.ready))[: event.engines].tolist()
            for engine in [self.ready[i] for i in chosen]:
                if event.event == "death":
                    self._die(engine, now)
                else:
                    self._leave([engine])
                    self._deadlines.append((now + event.deadline_s, engine, True))
        self._changed(now)

    def take_away(self, now: float) -> None:
        """Engines whose deadline is over: what they still have goes to others at once, whose it is to compute again."""
        for _, engine, is_lost in [deadline for deadline in self._deadlines if deadline[0] <= now]:
            self._returning += [(now, task) for task in engine.give_up()]
            self.num_lost += is_lost
            self._gone(engine)

    def _die(self, engine: Engine, now: float) -> None:
        if engine in self.ready:
            self._leave([engine])
            self._died_at += [now] if self._settings.replace_times_s else []
        self._returning += [(now + self._settings.death_seen_s, task) for task in engine.give_up()]
        self.num_lost += 1
        self._gone(engine)
