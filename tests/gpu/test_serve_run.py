"""``serve run ray_configs/llama_8b_gpu.yaml``, Ray Serve's own command: it serves, and Ctrl-C leaves nothing.

BIREME_SERVING_DEVICE=cpu tries it with SmolLM2 where there is no GPU.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from pathlib import Path

from benchmarks.serving.served_app import SERVE_RUN, ServedApp

ON_GPU = os.environ.get("BIREME_SERVING_DEVICE", "gpu") == "gpu"
CONFIG = Path(__file__).parents[2] / "ray_configs" / ("llama_8b_gpu.yaml" if ON_GPU else "smollm2_cpu.yaml")
TOKENS = 64


def test_serve_run_serves_and_ends(tmp_path):
    log = Path(os.environ.get("OUT", str(tmp_path)), "serve-run.log")
    app = ServedApp(CONFIG, str(log), command=SERVE_RUN)
    try:
        print(f"{app.model} ready after {app.seconds_to_start:.1f} s")
        connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=60)
        body = {"model": app.model, "prompt": "Once upon a time", "max_tokens": TOKENS, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = json.load(connection.getresponse())
        assert answer["usage"]["completion_tokens"] == TOKENS
        (engine,) = app.engines()
        assert (engine["device"] != "cpu") == ON_GPU
    finally:
        app.close()
    assert "Traceback" not in log.read_text()
    deadline = time.monotonic() + 10  # Ray's dashboard has a helper that notices a moment later
    while (left := processes_of(app.process_group)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def processes_of(group: int) -> list[str]:
    """Command lines of the processes of a process group; those that have ended and wait for their parent have none."""
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                commands.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended in between
            continue
    return [command for command in commands if command]
