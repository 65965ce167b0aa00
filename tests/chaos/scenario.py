"""A scenario: load, faults, checks, report."""

from __future__ import annotations

import asyncio
import time

from cluster.client import AsyncClient
from tests.chaos.application import Running, Setup, idle_stats, num_rpc_failures
from tests.chaos.faults import Fault, FillObjectStore, StallClients, VanishClients
from tests.chaos.injection import Moment, inject
from tests.chaos.load import Load, Seen
from tests.chaos.processes import pids_of
from tests.chaos.report import OVERLAPPED, Report
from tests.chaos.residue import growth, held

# A subscriber that does not come back is forgotten after ten seconds, and what it had with it.
SETTLE_S = 25.0
WARM_UP_S = 2.0
_NOTICED_S = 0.25


async def run_scenario(
    running: Running, setup: Setup, faults: list[Fault], seed: int, budget_s: float = float("inf")
) -> Report:
    """Load and faults together, then the checks. No fault begins after ``budget_s`` seconds."""
    started = time.monotonic()
    report = Report([seed])
    load = Load(running.url, setup.num_clients, setup.max_tokens, seed)
    twins = await load.twins()
    await load.run_for(WARM_UP_S)
    await asyncio.to_thread(idle_stats, setup.num_engines, 30)
    before = await asyncio.to_thread(held)
    loading = asyncio.create_task(load.run())
    moments: list[Moment] = []
    for number, fault in enumerate(faults):
        if time.monotonic() - started > budget_s:
            break
        print(f"{time.time():.3f} fault {number + 1}/{len(faults)}: {fault}", flush=True)
        moment = await inject(fault, running, load)
        if moment is None:
            report.missed[fault.label] += 1
        else:
            report.faults[moment.fault.label] += 1
            moments.append(moment)
    await asyncio.sleep(1.0)
    load.stopping = True
    await asyncio.wait_for(loading, 240)
    judge(report, load, twins)
    recoveries(report, load.seen, moments)
    if setup.rpc_failures:
        report.rpc_failures = await asyncio.to_thread(num_rpc_failures)
    leaks(report, await asyncio.to_thread(idle_stats, setup.num_engines, 90), setup)
    await leaks_outside(report, running, before)
    return report


def judge(report: Report, load: Load, twins: dict[int, tuple]) -> None:
    """Compare every answer with its undisturbed twin."""
    report.refused = load.refused
    for seen in load.seen:
        report.ended[seen.kind] += 1
        tokens = twins[seen.number][0]
        if seen.token_ids != tokens[: len(seen.token_ids)]:
            report.changed.append(f"request {seen.number} ({seen.kind}) has other tokens")
        elif seen.error is not None and seen.kind == "plain":
            report.honest += 1
        elif seen.error is not None:
            report.lost.append(f"request {seen.number} ({seen.kind}) after {len(seen.token_ids)} tokens: {seen.error}")
        elif seen.kind != "vanishing" and seen.answer != twins[seen.number]:
            report.changed.append(
                f"request {seen.number} ({seen.kind}): {seen.answer[1:]} is not {twins[seen.number][1:]}"
            )


def recoveries(report: Report, seen: list[Seen], moments: list[Moment]) -> None:
    """For every fault, how long the streams that ran at that moment waited for their next token; those that noticed."""
    harmful = [m for m in moments if not isinstance(m.fault, (StallClients, VanishClients, FillObjectStore))]
    for moment in harmful:
        for one in seen:
            gap = one.gap_at(moment.began) if one.kind == "resuming" else None
            if gap is None or gap <= _NOTICED_S:
                continue
            meanwhile = any(moment.began < other.began < moment.began + gap for other in harmful)
            label = moment.fault.label + (OVERLAPPED if meanwhile else "")
            report.recovery_s.setdefault(label, []).append(gap)


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
    if len(pids_of("runner")) != setup.num_engines:
        report.leaks.append(f"{len(pids_of('runner'))} runner processes instead of {setup.num_engines}")


async def leaks_outside(report: Report, running: Running, before: dict) -> None:
    """What the ingresses count, and every process's threads and file descriptors, as soon as they are as before."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        grown = growth(before, await asyncio.to_thread(held))
        if not any(one.is_leak for one in grown) or time.monotonic() > deadline:
            break
        await asyncio.sleep(1.0)
    report.leaks += [str(one) for one in grown if one.is_leak]
    for one in grown:
        report.note_growth(one.kind, one.descriptors, one.threads)
    async with AsyncClient(running.url) as client:
        status = await client.status()
    if status["running"]:
        report.leaks.append(f"an ingress counts {status['running']} running requests")
