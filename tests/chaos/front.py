"""``python -m tests.chaos.front --nodes 2``: what it costs clients when something before the engines dies or hangs.

Without nodes there is one proxy; with some, each has one, and clients know all addresses.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from tests.chaos.faults.kinds import Fault, KillProcess, RemoveNode, StopProcess
from tests.chaos.scenario import run_scenario
from tests.chaos.served.application import Setup, application

# Shares of the possible victims: not always the same one.
_CHOICES = (0.1, 0.5, 0.9, 0.3)
# Answers that take seconds, and room for those of all clients.
_MAX_TOKENS, _NUM_KV_BLOCKS = 1000, 1024


def front_faults(nodes: bool) -> list[Fault]:
    """Everything that stands before the engines, killed and stopped, and last the nodes that it is on."""
    faults: list[Fault] = []
    for target in ("proxy", "ingress"):
        faults += [KillProcess(0.5, choice, target, "decode") for choice in _CHOICES]
        faults += [StopProcess(0.5, choice, target, "decode", stopped_s=5.0) for choice in _CHOICES[:3]]
    return faults + [RemoveNode(0.5, choice) for choice in _CHOICES[:3] if nodes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=0, help="besides the head; each has a proxy")
    parser.add_argument("--only", default="", metavar="WORDS", help="of the faults, those whose name begins so")
    parser.add_argument("--seconds", type=float, default=300.0, help="no fault begins later than that")
    options = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    setup = Setup(num_engines=2, num_clients=8, num_nodes=options.nodes, max_tokens=_MAX_TOKENS)
    faults = [fault for fault in front_faults(options.nodes > 0) if fault.label.startswith(options.only)]
    with (
        tempfile.TemporaryDirectory() as folder,
        application(setup, Path(folder) / "tiny", num_kv_blocks=_NUM_KV_BLOCKS) as running,
    ):
        report = asyncio.run(run_scenario(running, setup, faults, seed=1, budget_s=options.seconds))
        print(f"{report}\n\n{report.table()}")
    sys.exit(report.exit_code)


if __name__ == "__main__":
    main()
