"""Makes a drawn fault happen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
import uuid
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from tests.chaos.faults import aim
from tests.chaos.faults.kinds import (
    ANY_PROXY,
    ENGINE_PHASES,
    HARMLESS,
    MOVE_PHASES,
    OUTSIDE_STAGES,
    Fault,
    FillObjectStore,
    KillProcess,
    KillStarting,
    RemoveNode,
    ScaleEngines,
    StallClients,
    StopProcess,
    VanishClients,
)
from tests.chaos.faults.scaling import Scaling
from tests.chaos.load.clients import Load
from tests.chaos.served.application import Running, num_answering, runners, warm_engines
from tests.chaos.served.ingresses import ask_ingresses, known_engines
from tests.chaos.served.nodes import STORE_BYTES, lose_node, parts_of, runner_places
from tests.chaos.served.processes import pids_of, send, state_of

# The load reaches every phase many times a second; a phase that is not reached in this time is given up.
PHASE_TIMEOUT_S = 10.0
# Requests move when an engine comes back or another one comes.
MOVE_TIMEOUT_S = 60.0
WARM_TIMEOUT_S = 90.0
# Until an engine that was asked for has come to a stage of its start; several compete for the cores.
START_TIMEOUT_S = 60.0
_LOOK_S = 0.005
# Phases of an engine itself.
AIMED = frozenset(ENGINE_PHASES + MOVE_PHASES) - {"any"}
_SPARE_ENGINES = 2
_SPARE_INGRESSES = 2
# Until HAProxy and the proxies know an ingress that is ready and have a connection to it.
_INTRODUCED_S = 3.0
_SPARE_ADDRESSES = 2


@dataclass(frozen=True)
class Moment:
    """When a fault began, of ``time.monotonic``.

    Attributes:
        began: when it was seen to have happened.
        aimed: from when on it may have happened. A process that hits itself in a phase does so before anybody here sees it, and
            its clients may have seen it first. None: it began at that moment.
    """

    fault: Fault
    began: float
    aimed: float | None = None

    @property
    def when(self) -> tuple[float, float]:
        """Between which moments it happened."""
        return self.began if self.aimed is None else self.aimed, self.began


async def inject(fault: Fault, running: Running, load: Load, scaling: Scaling) -> Moment | None:
    """Wait until the fault can be borne, then let it happen; None if its moment did not come or nothing was there to hit."""
    await asyncio.sleep(fault.pause_s)
    warm = await _warm(fault, running)
    if warm is None:
        return None
    if isinstance(fault, StallClients):
        return Moment(fault, time.monotonic()) if load.stall(fault.count, fault.stalled_s, fault.choice) else None
    if isinstance(fault, VanishClients):
        if not await _reached(load, fault.phase):
            return None
        return Moment(fault, time.monotonic()) if load.vanish(fault.count, fault.choice) else None
    if isinstance(fault, FillObjectStore):
        moment = Moment(fault, time.monotonic())
        try:
            await _fill_store.remote(fault.held_s)
        except ray.exceptions.RayError:
            return None
        return moment
    if isinstance(fault, RemoveNode):
        return await _remove_node(fault, running, warm)
    if isinstance(fault, ScaleEngines):
        return Moment(fault, time.monotonic()) if await scaling.begin(fault.by) else None
    if isinstance(fault, KillStarting):
        return await _kill_starting(fault, scaling, warm)
    assert isinstance(fault, (KillProcess, StopProcess))
    if fault.target in ("runner", "engine") and fault.phase in AIMED:
        return await _hit_in_phase(fault, warm)
    if fault.target == "ingress" and fault.phase in MOVE_PHASES:
        return await _hit_ingress_in_move(fault)
    if not await _reached(load, fault.phase):
        return None
    pids = [pid for pid in pids_of(fault.target) if state_of(pid)]
    if not pids:
        return None
    pid = pids[int(fault.choice * len(pids))]
    send(pid, _signal_of(fault))
    return await _began(fault, pid)


@ray.remote(num_cpus=0, max_retries=0)
def _fill_store(held_s: float) -> None:
    """In a process of its own: whoever fills the store waits for the disk, and the clients must not."""
    held = [ray.put(np.zeros(5_000_000, np.uint8)) for _ in range(STORE_BYTES // 4_000_000)]
    time.sleep(held_s)
    del held


async def _reached(load: Load, phase: str) -> bool:
    """Wait for the load to be in ``phase``."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(load.next(phase), PHASE_TIMEOUT_S)
        return True
    return False


async def _warm(fault: Fault, running: Running) -> list | None:
    """The warm engines, once another one, another ingress and another proxy, if there are several, go on if the fault takes one;
    None if that takes too long."""
    num_engines = 1 if isinstance(fault, HARMLESS) else _SPARE_ENGINES
    target = getattr(fault, "target", "")
    takes_node = isinstance(fault, RemoveNode)
    num_ingresses = _SPARE_INGRESSES if takes_node or target == "ingress" else 1
    takes_proxy = takes_node or target in ANY_PROXY
    num_addresses = _SPARE_ADDRESSES if takes_proxy and "," in running.url else 1
    deadline = time.monotonic() + WARM_TIMEOUT_S
    while True:
        # Serve tells ingresses of a new engine a while after it has started.
        known = await asyncio.to_thread(known_engines)
        warm = [
            one
            for one in await asyncio.to_thread(warm_engines)
            if all(one[1]["engine_id"] in ids for ids in known.values())
        ]
        ingresses = known if num_ingresses == 1 else running.introduced(known, _INTRODUCED_S)
        enough = len(warm) >= num_engines and len(ingresses) >= num_ingresses
        if enough and await asyncio.to_thread(num_answering, running.url) >= num_addresses:
            return warm
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(0.1)


def _signal_of(fault: KillProcess | StopProcess) -> signal.Signals:
    return signal.SIGKILL if isinstance(fault, KillProcess) else signal.SIGSTOP


async def _began(fault: Fault, pid: int, aimed: float | None = None) -> Moment:
    """The signal was sent; one that stops is followed by one that lets go on."""
    moment = Moment(fault, time.monotonic(), aimed)
    if isinstance(fault, StopProcess):
        await asyncio.sleep(fault.stopped_s)
        send(pid, signal.SIGCONT)
    return moment


async def _hit_in_phase(fault: KillProcess | StopProcess, warm: list) -> Moment | None:
    """The runner of an engine, a busy one if there is one, sends the signal in the phase; of moves, which are rare, and of
    requests that come ahead, which the router may send to others for long, the first that is in one."""
    busy = [one for one in warm if one[1]["num_requests_running"] + one[1]["num_requests_waiting"]] or warm
    if not busy:
        return None
    rare = fault.phase in (*MOVE_PHASES, "ahead")
    aimed = time.monotonic()
    once = os.path.join(tempfile.gettempdir(), f"bireme-once-{uuid.uuid4().hex}") if rare else ""
    pids: dict[int, Any] = {}
    for runner, _ in warm if rare else [busy[int(fault.choice * len(busy))]]:
        with contextlib.suppress(ray.exceptions.RayError, asyncio.TimeoutError):
            pid = await asyncio.wait_for(runner.__ray_call__.remote(aim.pid_of, fault.target), 2.0)
            pids[pid] = runner
            await asyncio.wait_for(
                runner.__ray_call__.remote(aim.arm, fault.phase, int(_signal_of(fault)), pid, once), 2.0
            )
    try:
        deadline = time.monotonic() + (MOVE_TIMEOUT_S if rare else PHASE_TIMEOUT_S)
        while pids and time.monotonic() < deadline:
            if (hit := next((pid for pid in pids if state_of(pid) in ("", "T")), None)) is not None:
                del pids[hit]
                return await _began(fault, hit, aimed)
            await asyncio.sleep(_LOOK_S)
        return None
    finally:
        for runner in pids.values():
            with contextlib.suppress(ray.exceptions.RayError, asyncio.TimeoutError):
                await asyncio.wait_for(runner.__ray_call__.remote(aim.disarm), 2.0)
        if once:
            Path(once).unlink(missing_ok=True)


async def _hit_ingress_in_move(fault: KillProcess | StopProcess) -> Moment | None:
    """The first ingress that has got places for requests which it is about to move sends the signal to itself."""
    aimed = time.monotonic()
    pids = await asyncio.to_thread(ask_ingresses, partial(aim.arm_ingress, int(_signal_of(fault))))
    deadline = time.monotonic() + MOVE_TIMEOUT_S
    while time.monotonic() < deadline:
        hit = [pid for pid in pids if state_of(pid) in ("", "T")]
        if hit:
            moment = await _began(fault, hit[0], aimed)
            await asyncio.to_thread(ask_ingresses, aim.disarm_ingress)
            return moment
        await asyncio.sleep(_LOOK_S)
    await asyncio.to_thread(ask_ingresses, aim.disarm_ingress)
    return None


async def _kill_starting(fault: KillStarting, scaling: Scaling, warm: list) -> Moment | None:
    """An engine starts, because there are to be more of them or because one died; its runner, or its replica where it has none
    yet, is killed where its start is."""
    is_changing = await scaling.is_changing()
    if fault.stage in OUTSIDE_STAGES and is_changing:
        return None  # which processes are those that start cannot be told any more
    known = {kind: set(pids_of(kind)) for kind in ("engine", "runner")}
    began = time.monotonic()
    if not is_changing and not await scaling.begin(1):
        send(warm[int(fault.choice * len(warm))][1]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if fault.stage in OUTSIDE_STAGES:
            kind = "engine" if fault.stage == "replica" else "runner"
            new = [pid for pid in pids_of(kind) if pid not in known[kind]]
            if new:
                send(new[0], signal.SIGKILL)
                return Moment(fault, began)
        else:
            for pid in await asyncio.to_thread(_arm_starting, fault.stage):
                while time.monotonic() < deadline:
                    if not state_of(pid):
                        return Moment(fault, began)
                    await asyncio.sleep(_LOOK_S)
        await asyncio.sleep(0.05)
    return None


def _arm_starting(stage: str) -> list[int]:
    """Process ids of the runners that are to die when that stage of their start ends: the first that has it before it."""
    for runner in runners():
        with contextlib.suppress(ray.exceptions.RayError):
            pid = ray.get(runner.__ray_call__.remote(partial(aim.arm_start, stage)), timeout=1.0)
            if pid:
                return [pid]
    return []


async def _remove_node(fault: RemoveNode, running: Running, warm: list) -> Moment | None:
    if running.cluster is None:
        return None
    places = await asyncio.to_thread(runner_places)
    serving = {places.get(runner._actor_id.hex()) for runner, _ in warm}
    victims = [node for node in running.nodes if node.node_id in serving]
    if not victims:
        return None
    node = victims[int(fault.choice * len(victims))]
    running.nodes.remove(node)
    parts = await asyncio.to_thread(parts_of, node)
    moment = Moment(replace(fault, front=tuple(sorted(parts & {"ingress", "proxy"}))), time.monotonic())
    await asyncio.to_thread(lose_node, running.cluster, node, fault.silent_s)
    await asyncio.to_thread(running.add_node)
    return moment
