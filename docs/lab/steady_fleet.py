"""How much of the oracle's demand a fixed fleet carries when nothing changes: what no scaling policy can save.

    python docs/lab/steady_fleet.py TRACE ENGINES

Requests of the recording come evenly at random for 500 s, so many that the work needs the given share of the engines.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster.scaling.traces import read_trace
from deployments.simulator.arrivals import Arrivals, arrivals_of
from deployments.simulator.compare import Schedule
from deployments.simulator.oracle import lower_bound
from deployments.simulator.requests.requests_fleet import simulate_requests
from deployments.simulator.setup import SimulatorSettings

_SECONDS = 500.0


def main(trace: Path, engines: int) -> None:
    settings, rng = SimulatorSettings(), np.random.default_rng(5)
    recorded = arrivals_of(read_trace(trace), settings)

    def evenly(count: int) -> Arrivals:
        index = rng.integers(0, len(recorded.at), count)
        at = np.sort(rng.uniform(0, _SECONDS, count))
        return Arrivals(at, recorded.prompt[index], recorded.output[index], None, _SECONDS)

    some = 20_000
    engine_s = lower_bound(evenly(some), settings, 0.0).proved_hours * 3600 / some
    for share in (0.80, 0.84, 0.88, 0.92, 0.96):
        load = evenly(int(share * engines * _SECONDS / engine_s))
        found = simulate_requests(load, settings, Schedule([engines], 1.0), engines)
        print(f"{share:.2f} of {engines} engines: {found.attainment:.2%} within the objectives, TTFT {found.ttft_s}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
