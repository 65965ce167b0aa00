"""A scenario: load, faults, checks, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from ray.util import placement_group_table

from cluster.process.freeze_gc import freeze_gc
from tests.chaos.faults.injection import Moment, inject
from tests.chaos.faults.kinds import (
    ANY_PROXY,
    HARMLESS,
    Fault,
    KillProcess,
    RemoveNode,
    ScaleEngines,
    StopProcess,
)
from tests.chaos.faults.scaling import Scaling
from tests.chaos.load.clients import Load
from tests.chaos.load.seen import UNDER_WAY_S, Seen, Twin
from tests.chaos.report import OVERLAPPED, Report, target_s
from tests.chaos.served.application import Running, Setup, idle_stats, num_rpc_failures
from tests.chaos.served.ingresses import Open, num_moves, open_now
from tests.chaos.served.processes import pids_of
from tests.chaos.served.residue import Held, growth, held

# A subscriber that does not come back is forgotten after ten seconds, and what it had with it.
SETTLE_S = 25.0
WARM_UP_S = 2.0
# The last requests may have to wait for a new engine, and their clients be refused a while.
END_S = 240.0
_NOTICED_S = 0.25
# What stands between a client and the engines.
_FRONT = {"ingress", *ANY_PROXY}


Watch = Callable[[Report, Load], Awaitable[None]]


async def run_scenario(
    running: Running,
    setup: Setup,
    faults: list[Fault],
    seed: int,
    budget_s: float = float("inf"),
    watch: Watch | None = None,
) -> Report:
    """Load and faults together, then the checks. No fault begins after ``budget_s`` seconds.

    Args:
        watch: runs beside the load, with what the scenario has found so far, until the load is to stop.
    """
    started = time.monotonic()
    report = Report([seed])
    # HAProxy has Serve's own proxy beside it, and says so.
    load = Load(running.url, setup.num_clients, setup.max_tokens, seed, learning=setup.haproxy)
    twins = await load.twins()
    await load.run_for(WARM_UP_S)
    await asyncio.to_thread(idle_stats, setup.num_engines, 30)
    before = await asyncio.to_thread(held)
    # The clients' clocks are in this process.
    freeze_gc()
    loading = asyncio.create_task(load.run())
    watching = None if watch is None else asyncio.ensure_future(watch(report, load))
    moments: list[Moment] = []
    assert running.deploy is not None
    scaling = Scaling(running.deploy, setup.num_engines)
    moved: dict[int, int] = {}  # ingresses die and are replaced, and what they counted goes with them
    for number, fault in enumerate(faults):
        if time.monotonic() - started > budget_s:
            break
        print(f"{time.time():.3f} fault {number + 1}/{len(faults)}: {fault}", flush=True)
        moment = await inject(fault, running, load, scaling)
        if moment is None:
            report.missed[fault.label] += 1
        else:
            report.faults[moment.fault.label] += 1
            moments.append(moment)
        moved |= await asyncio.to_thread(num_moves)
    await scaling.end_with(setup.num_engines, END_S)
    await asyncio.sleep(1.0)
    report.moves = sum((moved | await asyncio.to_thread(num_moves)).values())
    if watching is not None:
        watching.cancel()
        await asyncio.wait((watching,))
        if not watching.cancelled():
            watching.result()
    load.stopping = True
    await asyncio.wait((loading,), timeout=END_S)
    for seen, task in list(load.running.values()):
        task.cancel()
        report.lost.append(f"request {seen.number} ({seen.kind}) hangs after {seen.num_tokens} tokens")
    await loading
    judge(report, load, twins, [one.when for one in moments if _breaks_connections(one.fault, setup)])
    recoveries(report, load.seen, moments)
    if setup.rpc_failures:
        report.rpc_failures = await asyncio.to_thread(num_rpc_failures)
    # Serve may have noticed only now that one of them had died.
    await scaling.end_with(setup.num_engines, END_S)
    stats = await asyncio.to_thread(idle_stats, setup.num_engines, 90)
    leaks(report, stats, setup)
    await leaks_outside(report, setup, before, {one["engine_id"] for one in stats})
    return report


def _breaks_connections(fault: Fault, setup: Setup) -> bool:
    """Whether a client that takes nothing up may be told of a break: not if all that is lost is behind the ingresses."""
    if isinstance(fault, (KillProcess, StopProcess)):
        return fault.target in _FRONT or setup.rpc_failures > 0
    return isinstance(fault, RemoveNode) or setup.rpc_failures > 0


def judge(report: Report, load: Load, twins: dict[int, Twin], breaks: Sequence[tuple[float, float]] = ()) -> None:
    """Compare every answer with its undisturbed twin.

    Args:
        breaks: between which moments of ``time.monotonic`` each break of clients' connections happened; only then and in its
            aftermath may a plain client see an error.
    """
    report.refused = load.refused
    for seen in load.seen:
        report.ended[seen.kind] += 1
        twin = twins[seen.number]
        if not seen.begins(twin):
            report.changed.append(f"request {seen.number} ({seen.kind}) has other tokens or another text")
        elif seen.is_break and not seen.takes_up and any(seen.might_feel(*one) for one in breaks):
            report.honest += 1
        elif seen.error is not None:
            report.lost.append(f"request {seen.number} ({seen.kind}) after {seen.num_tokens} tokens: {seen.error}")
        elif seen.kind != "vanishing" and seen.answer != twin:
            report.changed.append(f"request {seen.number} ({seen.kind}): {seen.answer} is not {twin}")


def recoveries(report: Report, seen: list[Seen], moments: list[Moment]) -> None:
    """For every fault, how long the streams that ran at that moment waited for their next token; those that noticed."""
    harmful = [m for m in moments if not isinstance(m.fault, (*HARMLESS, ScaleEngines))]
    for moment in harmful:
        for one in seen:
            wait = one.wait_at(moment.began) if one.kind == "resuming" else None
            if wait is None:
                continue
            gap = wait[1] - max(wait[0], moment.began)
            if gap <= _NOTICED_S:
                continue
            others = [
                other
                for other in harmful
                if other is not moment and other.began < wait[1] and wait[0] < other.began + UNDER_WAY_S
            ]
            label = moment.fault.label + (OVERLAPPED if others else "")
            report.recovery_s.setdefault(label, []).append(gap)
            # One that is hit again on its way back may wait for each.
            if gap > sum(target_s(other.fault.label) for other in [moment, *others]):
                report.late.setdefault(label, []).append(gap)
                since = time.time() - (time.monotonic() - moment.began)
                print(f"{since:.3f} {label}: request {one.number} waited for {gap:.2f} s", flush=True)


def leaks(report: Report, stats: list[dict], setup: Setup) -> None:
    """What the engines hold when nobody asks for anything."""
    if len(stats) != setup.num_engines:
        report.leaks.append(f"{len(stats)} engines instead of {setup.num_engines}")
    for one in stats:
        still = {
            "blocks": one["num_blocks"] - one["num_blocks_available"],
            "slots": one["num_slots_leaving"],
            "requests": one["num_requests_running"] + one["num_requests_waiting"],
        }
        report.leaks += [f"{one['engine_id']} holds {count} {what}" for what, count in still.items() if count]
    for kind in ("runner", "engine"):
        if len(pids_of(kind)) != setup.num_engines:
            report.leaks.append(f"{len(pids_of(kind))} {kind} processes instead of {setup.num_engines}")


async def leaks_outside(report: Report, setup: Setup, before: dict[int, Held], engines: set[str]) -> None:
    """What each ingress has open, every process's threads and file descriptors, old HAProxies and placement groups, as soon as
    they are as before."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        now = await asyncio.to_thread(held)
        grown = growth(before, now)
        found = [str(one) for one in grown if one.is_leak]
        found += ingress_leaks(await asyncio.to_thread(open_now), setup.num_ingresses, engines)
        found += await asyncio.to_thread(others_left, setup, before, now)
        if not found or time.monotonic() > deadline:
            break
        await asyncio.sleep(1.0)
    report.leaks += found
    for one in grown:
        report.note_growth(one.kind, one.descriptors, one.threads)


def ingress_leaks(found: dict[int, Open], num_ingresses: int, engines: set[str]) -> list[str]:
    """An ingress without requests is attached to every engine there is, and to none that was."""
    leaks = [] if len(found) == num_ingresses else [f"{len(found)} ingresses answer instead of {num_ingresses}"]
    for pid, has in found.items():
        if has.seeds or has.num_tasks:
            leaks.append(f"ingress {pid} has {len(has.seeds)} requests open and follows {has.num_tasks}")
        if has.streams != engines:
            leaks.append(f"ingress {pid} is attached to {sorted(has.streams)} instead of {sorted(engines)}")
    return leaks


def others_left(setup: Setup, before: dict[int, Held], now: dict[int, Held]) -> list[str]:
    """HAProxy is replaced by a new process with each change of its configuration; a replica has one placement group."""
    then, still = (sum(one.kind == "haproxy" for one in processes.values()) for processes in (before, now))
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    leaks = [] if still == then else [f"{still} HAProxy processes instead of {then}"]
    if len(groups) != setup.num_engines:
        leaks.append(f"{len(groups)} placement groups instead of {setup.num_engines}")
    return leaks
