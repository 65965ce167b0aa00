"""``make chaos FAULTS=500 SEED=1``: the long scenario. Prints the report, and exits as ``Report.exit_code`` says."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from cluster.routing.policies import POLICIES
from tests.chaos.faults.kinds import HAPROXIES, PROXIES, draw_faults
from tests.chaos.scenario import run_scenario
from tests.chaos.served.application import Setup, application


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", metavar="WORDS", help="of the faults, those whose name begins so")
    parser.add_argument("--engines", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=0, help="nodes with one engine each, which vanish too")
    parser.add_argument("--rpc-failures", type=int, default=0, help="percent of Ray's actor calls that fail")
    parser.add_argument("--haproxy", action="store_true", help="requests come through HAProxy, as with bireme serve")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no fault begins later than that")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json, where the default model is not at hand")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"], help="gpu: all engines share one")
    parser.add_argument("--slots", type=int, default=8, help="of an engine; with few, requests wait and move")
    parser.add_argument("--scales", action="store_true", help="engines come and go, and die within moves")
    parser.add_argument("--routing-policy", default="power_of_two", choices=list(POLICIES))
    parser.add_argument("--json", type=Path, help="where the report goes, for tests.chaos.total")
    options = parser.parse_args()
    for name in ("httpx", "httpx2", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)
    setup = Setup(
        num_engines=options.engines,
        num_clients=options.clients,
        num_nodes=options.nodes,
        rpc_failures=options.rpc_failures,
        haproxy=options.haproxy,
        tokenizer=options.tokenizer,
        device=options.device,
        routing_policy=options.routing_policy,
        max_num_seqs=options.slots,
    )
    count, proxies = options.faults * (100 if options.only else 1), HAPROXIES if options.haproxy else PROXIES
    drawn = draw_faults(options.seed, count, bool(options.nodes), proxies, options.scales)
    faults = [fault for fault in drawn if fault.label.startswith(options.only)][: options.faults]
    with tempfile.TemporaryDirectory() as folder, application(setup, Path(folder) / "tiny") as running:
        report = asyncio.run(run_scenario(running, setup, faults, options.seed, options.seconds))
        # The application's own end takes a while; the report is safe by then.
        print(report)
        if options.json:
            options.json.write_text(report.to_json())
    sys.exit(report.exit_code)


if __name__ == "__main__":
    main()
