"""``make chaos FAULTS=500 SEED=1``: the long scenario. Prints the report; exit code 1 if anything was lost, changed or left."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.chaos.faults import draw_faults
from tests.chaos.scenario import Setup, application, run_scenario


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engines", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    setup = Setup(num_engines=options.engines, num_clients=options.clients)
    with tempfile.TemporaryDirectory() as folder, application(setup, Path(folder) / "tiny") as url:
        report = asyncio.run(run_scenario(url, setup, draw_faults(options.seed, options.faults), options.seed))
    print(report)
    sys.exit(1 if report.lost or report.changed or report.leaks else 0)


if __name__ == "__main__":
    main()
