"""A Ray cluster of one node whose autoscaler adds others, all on this machine: Ray's autoscaler and its provider of fake nodes.

Never Ray's ``AutoscalingCluster``, which ends every Ray of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from deployments.ray_private.serve import gcs_client
from tests.chaos.served.nodes import STORE_BYTES
from tests.chaos.served.processes import descendants, send, state_of

_ROOT = Path(__file__).resolve().parents[3]
# Read by Ray's processes of the head: the recipe of a fake cluster.
_FAKE = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
# The autoscaler reads them of every cluster's file; a fake node runs none.
_NO_COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
)
_END_S = 10.0


class NodesOfTheirOwn(FakeMultiNodeProvider):
    """Ray's fake nodes, each with variables of the environment of its own: disks that others do not share.

    ``provider`` of the cluster's file has them: ``env_vars``, a list for the nodes in the order in which they come; the last one
    is for all later ones, too.
    """

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        per_node = self.provider_config["env_vars"]
        variables = per_node[min(self._next_node_id, len(per_node) - 1)]
        before = dict(os.environ)
        os.environ.update(variables)  # the node's processes inherit the autoscaler's
        try:
            super()._create_node_with_resources_and_labels(*arguments)
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def autoscaled_cluster(
    folder: Path,
    head: Mapping[str, float],
    worker: Mapping[str, float],
    max_workers: int,
    env_vars: list[dict[str, str]],
    idle_s: float,
) -> Iterator[str]:
    """Start the head alone; at the end nothing of the cluster is left.

    Args:
        head, worker: resources of the head and of a node that the autoscaler adds.
        env_vars: of the added nodes, see ``NodesOfTheirOwn``.
        idle_s: a node of which nothing was used for so long goes.
    Yields:
        Address of the cluster.
    """
    port, session = _free_port(), tempfile.mkdtemp(prefix="ray-")  # short: sockets lie there
    address = f"{get_node_ip_address()}:{port}"
    provider = f"{NodesOfTheirOwn.__module__}.{NodesOfTheirOwn.__name__}"
    config = {
        "cluster_name": "fake",
        "max_workers": max_workers,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": provider,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
            "launch_multiple": True,
            "env_vars": env_vars,
        },
        "auth": {},
        **{name: [] for name in _NO_COMMANDS},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": dict(head), "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {**worker, "object_store_memory": STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_workers,
            },
        },
    }
    file = folder / "cluster.json"
    file.write_text(json.dumps(config))
    named = {name: amount for name, amount in head.items() if name != "CPU"}
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--autoscaling-config={file}"),
        *(f"--port={port}", f"--num-cpus={head['CPU']:g}", "--num-gpus=0"),
        *(f"--resources={json.dumps(named)}", f"--object-store-memory={STORE_BYTES}", "--include-dashboard=false"),
        f"--ray-client-server-port={_free_port()}",
        f"--temp-dir={session}",
        "--disable-usage-stats",
    ]
    variables = {**os.environ, **_FAKE, "PYTHONPATH": str(_ROOT)}
    with open(folder / "ray_start.log", "wb") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_for_head(process, folder / "ray_start.log")
        gcs_client(address)  # with the user's token, where the cluster asks for one
        yield address
    finally:
        _end(process)
        shutil.rmtree(session, ignore_errors=True)


def _wait_for_head(process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        if "Ray runtime started" in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"no head after 30 s: {log.read_text()}")


def _end(process: subprocess.Popen) -> None:
    ours = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    ours = sorted({*ours, *descendants(process.pid), process.pid})
    for pid in ours:
        if state_of(pid):
            send(pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
