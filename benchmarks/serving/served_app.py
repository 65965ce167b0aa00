"""A served application in a process group of its own, by a Serve config on a free port; ends with everything it started."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from deployments.start.serve_environment import free_port

_READY_TIMEOUT_S = 300.0
BIREME_SERVE = ("-m", "bireme", "serve")
# Ray Serve's own command; its script's first line may name a Python of another machine.
SERVE_RUN = ("-c", "from ray.serve.scripts import cli; cli()", "run")


class ServedApp:
    """A running application.

    Attributes:
        port, url: of its API; the url is without /v1.
        model: the name under which clients ask for it.
        seconds_to_start: from the command to the first answer.
        process_group: id of the group of the server and what it starts.

    Args:
        config: a Serve config file, or its content.
        log_path: where the server's output goes.
        settings: settings of the application that replace the file's.
        environment: variables of the server beside this process's own.
        command: BIREME_SERVE or SERVE_RUN, what this Python is to run.
    Raises:
        RuntimeError: it ended, or is not ready in time; the message names the log.
    """

    def __init__(
        self,
        config: Path | dict[str, Any],
        log_path: str,
        settings: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        command: tuple[str, ...] = BIREME_SERVE,
    ) -> None:
        content = yaml.safe_load(config.read_text()) if isinstance(config, Path) else copy.deepcopy(config)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        content["http_options"] = {"host": "127.0.0.1", "port": self.port}
        content["applications"][0].setdefault("args", {}).update(settings or {})
        self._config_path = log_path + ".json"  # which is YAML too
        Path(self._config_path).write_text(json.dumps(content))
        self.log_path = log_path
        self._log = open(log_path, "w")  # noqa: SIM115 (the server writes to it until close)
        started = time.monotonic()
        self._server = subprocess.Popen(
            # Ends with this process, also where that is killed.
            ["setpriv", "--pdeathsig", "INT", sys.executable, *command, self._config_path, "--address", "local"],
            stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.process_group = self._server.pid
        try:
            self.model = self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        self.seconds_to_start = time.monotonic() - started

    def get(self, path: str, timeout_s: float = 10.0) -> Any:
        """What ``GET path`` answers, parsed."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as reply:
            return json.load(reply)

    def engines(self) -> list[dict[str, Any]]:
        """The engines that answer, with their counters."""
        return [engine for engine in self.get("/v1/status")["engines"] if "num_blocks" in engine]

    def close(self) -> None:
        """End the server as Ctrl-C would, and its whole process group if that does not help."""
        if self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)
            try:
                self._server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._server.pid, signal.SIGKILL)
        self._log.close()
        Path(self._config_path).unlink(missing_ok=True)

    def _wait_until_ready(self) -> str:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                raise RuntimeError(f"the server ended; its log is {self.log_path}")
            try:
                return self.get("/v1/models", 2)["data"][0]["id"]
            except OSError:
                time.sleep(0.25)
        raise RuntimeError(f"the server is not ready; its log is {self.log_path}")


def settings_config(settings: dict[str, Any]) -> dict[str, Any]:
    """The Serve config of one application with these settings."""
    application = {
        "name": "default",
        "route_prefix": "/",
        "import_path": "deployments.llm:build_openai_app",
        "args": dict(settings),
    }
    return {"proxy_location": "HeadOnly", "applications": [application]}
