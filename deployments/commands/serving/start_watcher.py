"""A start of ``bireme serve`` from Ray to ready as a person sees it, and what it says when it fails."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.config import LLMConfig
from cluster.outputs import ServedModel
from deployments.commands.serving.engine_starts import EngineStarts
from deployments.commands.serving.ready_block import device_row, memory_row, ready_block
from deployments.commands.serving.server_log import ServerLog
from deployments.commands.serving.start_view import StartView
from deployments.http.keys import API_KEY_VARIABLE
from deployments.start.preflight import PortTakenError, check_listening
from deployments.start.ready_line import curl, url_host

# Of HAProxy, and of Serve's own proxy.
_CANNOT_LISTEN = re.compile(r"listeners|[Ff]ailed to bind|[Cc]annot bind|[Aa]ddress already in use")
# An engine that is ready answers in milliseconds.
_FIGURES_S = 2.0
_NOT_KNOWN = "known once an engine runs"


class StartWatcher:
    """From now on stdout and stderr of this process and its children are a file.

    Attributes:
        log: that file.

    Args:
        view: shows the stages.
        config: of Ray Serve; shown: its first application of this project, and the settings of that; served: its model.
        base: folder of this user, in whose ``logs`` the file lies.
        verbose: all that is written there is shown, too.
    """

    def __init__(
        self,
        view: StartView,
        config: dict[str, Any],
        shown: tuple[dict[str, Any], LLMConfig],
        served: ServedModel,
        base: Path,
        verbose: bool,
    ) -> None:
        self._view = view
        self._config = config
        self._application, self._model = shown
        self._served = served
        self._engines = EngineStarts()
        self.log = ServerLog(base / "logs", view.line, verbose)
        view.redirect(self.log.terminal)

    def begin(self, stage: str) -> None:
        """As ``Watcher``."""
        self._view.begin(stage)
        self._view.tick()

    def look(self) -> None:
        """As ``Watcher``."""
        self._engines.look()
        self._engines.show(self._view)

    def known_cause(self, error: Exception) -> str | None:
        """As ``Watcher``: the port, which was free when the start began, is somebody else's by now."""
        return taken_meanwhile(self._config["http_options"], error)

    def failed(self, reason: str) -> list[str]:
        """As ``Watcher``."""
        self.log.give_back()
        self._view.close()
        return [f"Error: {reason}", *(f"  {line}" for line in self.log.relevant_lines()), f"The log: {self.log.path}"]

    def ready(self) -> None:
        """As ``Watcher``."""
        self._view.end()
        self._view.line(f"  {'ready after':<28}{self._view.total_s:7.1f} s\n")
        self._view.close()
        if self._model.engine_counts[0]:
            self._engines.wait(_FIGURES_S)
        for line in ready_block(self._rows(), self._view.columns):
            self._view.line(line)
        self._view.line(f"\n{curl(self._url, self._served.model_id, self._needs_key)}\n")

    @property
    def _url(self) -> str:
        http = self._config["http_options"]
        prefix = (self._application.get("route_prefix") or "/").rstrip("/")
        return f"http://{url_host(http['host'])}:{http['port']}{prefix}"

    @property
    def _needs_key(self) -> bool:
        model = self._model
        return bool(model.api_keys or model.api_keys_file or os.environ.get(API_KEY_VARIABLE))

    def _rows(self) -> dict[str, str]:
        stats, model, served = self._engines.stats, self._model, self._served
        memory = f"{_NOT_KNOWN}; streams of up to {served.max_model_len:,} tokens"
        if "num_blocks" in stats:
            memory = memory_row(stats["num_blocks"], model.block_size, served.max_model_len, model.max_num_seqs)
        rows = {
            "URL": f"{self._url}/v1" + (", with an API key" if self._needs_key else ""),
            "model": served.model_id,
            "device": device_row(stats),
            "memory": memory,
        }
        if address := _dashboard():
            token = Path.home() / ".ray" / "auth_token"
            rows["dashboard"] = f"http://{address}" + (f", token: cat {token}" if token.is_file() else "")
        rows["log"] = str(self.log.path)
        return rows


def taken_meanwhile(http: Mapping[str, Any], error: Exception) -> str | None:
    """That the server's port is taken, if ``error`` is of a proxy that cannot listen; else None."""
    if _CANNOT_LISTEN.search(str(error)) is None:
        return None
    try:
        check_listening(str(http["host"]), http["port"])
    except PortTakenError as taken:
        return f"{taken.message}; it was free when this start began"
    return None


def _dashboard() -> str:
    """host:port of the dashboard of the Ray of this process; empty if it has none."""
    from deployments.ray_private.serve import dashboard_address

    return dashboard_address()
