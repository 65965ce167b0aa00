"""``python -m tests.soak.run --seconds 600 --seed 1``: faults under load for a while, and what grew meanwhile.

It uses loopback only, stops by itself, and ends no process but those of its own application. Exits with 1 if anything grew, or
was lost or changed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.faults.kinds import HAPROXIES, Fault, draw_faults
from tests.chaos.load.clients import Load
from tests.chaos.report import Report
from tests.chaos.scenario import run_scenario
from tests.chaos.served.application import Running, Setup, application
from tests.soak.growth import Record, growths, table
from tests.soak.samples import Looker

# An engine takes two to five seconds to start: no more of them can die.
_MOST_FAULTS_A_SECOND = 1.0
_LOOKS = 120
_SHORTEST_LOOK_S = 1.0


async def soak(
    running: Running, setup: Setup, faults: Sequence[Fault], seed: int, seconds: float
) -> tuple[Report, Record]:
    """Load and faults for so long, as in the chaos suite, and looks at what there is meanwhile."""
    looker, record = Looker(running.url), Record()
    every_s = max(_SHORTEST_LOOK_S, seconds / _LOOKS)

    async def watch(report: Report, load: Load) -> None:
        started = time.monotonic()
        while True:
            began = time.monotonic()
            counts = await asyncio.to_thread(looker.look)
            record.add(began - started, sum(report.faults.values()), len(load.seen), counts)
            await asyncio.sleep(max(0.0, began + every_s - time.monotonic()))

    report = await run_scenario(running, setup, list(faults), seed, seconds, watch)
    return report, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="no fault begins later than that")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engines", type=int, default=3)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--json", type=Path, help="where the record goes, for docs/lab/draw_soak.py")
    options = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    setup = Setup(num_engines=options.engines, num_clients=options.clients, max_tokens=200, haproxy=True)
    count = int(options.seconds * _MOST_FAULTS_A_SECOND)
    faults = draw_faults(options.seed, count, proxies=HAPROXIES)
    with tempfile.TemporaryDirectory() as folder, application(setup, Path(folder) / "tiny") as running:
        report, record = asyncio.run(soak(running, setup, faults, options.seed, options.seconds))
        if options.json:
            options.json.write_text(record.to_json())
        grown = growths(record)
        print(f"{report}\n\n{table(record)}\n")
        print("\n".join(f"GREW {line}" for line in grown) or "nothing grew")
    sys.exit(0 if report.is_clean and not grown else 1)


if __name__ == "__main__":
    main()
