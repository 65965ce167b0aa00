"""What goes wrong in a scenario: small values, drawn from a seed so that they can be drawn again."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass

from cluster.observability.start_stages import READY, STAGES

# Where a request is when its engine's process is hit; "any": wherever it happens to be; "ahead": it came, and its call has not.
ENGINE_PHASES = ("any", "ahead", "queued", "prefill", "decode", "saving", "handover")
# Within a move: the target has promised places, the source looks for requests to give up. They come only where requests wait.
MOVE_PHASES = ("reserve", "move")
# Of an engine's start, up to the end of the last one; in the first two its runner does not answer yet.
START_STAGES = STAGES[: STAGES.index(READY) + 1]
OUTSIDE_STAGES = START_STAGES[:2]
# Who is hit within a move: the target, the source, or the ingress that brings both together.
MOVES = (("runner", "reserve"), ("runner", "move"), ("ingress", "move"))
# A replica is also hit when a client has sent a request that may be on its way to it.
REPLICA_PHASES = ("sent", *ENGINE_PHASES)
# What a client has seen of its answer when a process in front of the engines is hit.
CLIENT_PHASES = ("any", "sent", "decode")


@dataclass(frozen=True)
class Fault(ABC):
    """Attributes:
    pause_s: how long the load runs undisturbed before it.
    choice: which of the possible victims, as a share of their number.
    """

    pause_s: float
    choice: float

    @property
    @abstractmethod
    def label(self) -> str:
        """Faults with the same one are counted together."""


@dataclass(frozen=True)
class KillProcess(Fault):
    """SIGKILL to a process of a kind (``processes.TITLES``) when a request of the load is in ``phase``; of a runner or a replica,
    when its own engine is."""

    target: str
    phase: str = "any"

    @property
    def label(self) -> str:
        return f"kill {self.target}" + ("" if self.phase == "any" else f" in {self.phase}")


@dataclass(frozen=True)
class StopProcess(Fault):
    """SIGSTOP, and SIGCONT ``stopped_s`` seconds later."""

    target: str
    phase: str = "any"
    stopped_s: float = 5.0

    @property
    def label(self) -> str:
        where = "" if self.phase == "any" else f" in {self.phase}"
        return f"stop {self.target}{where} for {self.stopped_s:g} s"


@dataclass(frozen=True)
class RemoveNode(Fault):
    """A node with an engine vanishes, all its processes with it; an empty one is added.

    Attributes:
        silent_s: before its connections break, nothing is heard from it for so long.
        front: what else was on it, "ingress" or "proxy"; seen when it happens.
    """

    silent_s: float = 0.0
    front: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        what = f"node silent for {self.silent_s:g} s" if self.silent_s else "remove node"
        return what + (f" with {' and '.join(self.front)}" if self.front else "")


@dataclass(frozen=True)
class VanishClients(Fault):
    """Clients close their connections when one of them is in ``phase``."""

    phase: str = "any"
    count: int = 3

    @property
    def label(self) -> str:
        return "clients vanish" + ("" if self.phase == "any" else f" in {self.phase}")


@dataclass(frozen=True)
class StallClients(Fault):
    """Clients stop reading for a while; what they are owed waits for them."""

    count: int = 3
    stalled_s: float = 2.0

    @property
    def label(self) -> str:
        return f"clients stall for {self.stalled_s:g} s"


@dataclass(frozen=True)
class FillObjectStore(Fault):
    """Ray's object store is filled beyond its size and stays so for a while."""

    held_s: float = 1.0

    @property
    def label(self) -> str:
        return "object store full"


@dataclass(frozen=True)
class ScaleEngines(Fault):
    """The application is deployed with one engine more or less than it has.

    Attributes:
        by: 1 or -1.
    """

    by: int = 1

    @property
    def label(self) -> str:
        return "scale up" if self.by > 0 else "scale down"


@dataclass(frozen=True)
class KillStarting(Fault):
    """SIGKILL to an engine that starts, at the end of a stage of its start.

    Attributes:
        stage: one of ``START_STAGES``.
    """

    stage: str = "weights"

    @property
    def label(self) -> str:
        return f"kill starting engine in {self.stage}"


# What stands before the ingresses: Serve's own proxy, or HAProxy, the actor that starts it, and Serve's own proxy beside them.
PROXIES, HAPROXIES = ("proxy",), ("haproxy", "haproxy", "haproxy manager", "proxy")
ANY_PROXY = frozenset(PROXIES + HAPROXIES)
# Faults that take nothing away: no process and no node.
HARMLESS = (StallClients, VanishClients, FillObjectStore)


def draw_faults(
    seed: int, count: int, nodes: bool = False, proxies: tuple[str, ...] = PROXIES, scales: bool = False
) -> list[Fault]:
    """The faults of a seed; nodes vanish where the cluster has some to spare. Most faults hit what computes and answers.

    Args:
        scales: the number of engines changes, and faults happen within starts and moves.
    """
    chance = random.Random(seed)
    kinds = {"runner": 8, "engine": 5, "ingress": 3, "proxy": 1, "controller": 1, "clients": 3, "store": 1}
    if nodes:
        kinds["node"] = 4
    if scales:
        kinds |= {"scale": 4, "start": 4, "move": 8}
    return [_draw(chance, kinds, proxies) for _ in range(count)]


def _draw(chance: random.Random, kinds: dict[str, int], proxies: tuple[str, ...]) -> Fault:
    kind = chance.choices(list(kinds), list(kinds.values()))[0]
    when = chance.uniform(0.05, 0.6), chance.random()
    if kind == "node":
        return RemoveNode(*when, silent_s=chance.choice([0.0, 8.0]))
    if kind == "scale":
        return ScaleEngines(*when, by=chance.choice([1, -1]))
    if kind == "move":
        return KillProcess(*when, *chance.choice(MOVES))
    if kind == "start":
        return KillStarting(*when, stage=chance.choice(START_STAGES))
    if kind == "store":
        return FillObjectStore(*when, held_s=chance.choice([0.5, 2.0]))
    if kind == "clients":
        count = chance.randint(1, 4)
        if chance.random() < 0.5:
            return StallClients(*when, count=count, stalled_s=chance.choice([1.0, 4.0]))
        return VanishClients(*when, phase=chance.choice(CLIENT_PHASES), count=count)
    if kind == "proxy" and len(proxies) > 1:
        kind = chance.choice(proxies)
    phases = {"runner": ENGINE_PHASES, "engine": REPLICA_PHASES, "controller": ("any",)}.get(kind, CLIENT_PHASES)
    phase = chance.choice(phases)
    if chance.random() < 0.7:
        return KillProcess(*when, kind, phase)
    return StopProcess(*when, kind, phase, stopped_s=chance.choice([0.5, 2.0, 5.0]))
