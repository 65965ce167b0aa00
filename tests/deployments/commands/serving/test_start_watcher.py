"""Which address a start shows, and what it says of a port that somebody else took meanwhile."""

from __future__ import annotations

import socket

from deployments.commands.serving.start_watcher import StartWatcher, taken_meanwhile
from deployments.start.serve_config import BUILDER, configured_models
from deployments.start.serve_environment import free_port


def test_the_address_shown_is_that_of_the_first_application_of_ours():
    ours = {"import_path": BUILDER, "route_prefix": "/ours", "args": {}}
    config = {
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [{"import_path": "theirs:app", "route_prefix": "/theirs"}, ours],
    }
    watcher = StartWatcher.__new__(StartWatcher)
    watcher._config, (watcher._application, watcher._model) = config, configured_models(config)[0]
    assert watcher._url == "http://127.0.0.1:8000/ours"


def test_a_port_that_was_taken_since_the_start_began_is_told_without_the_proxys_words():
    proxy = RuntimeError("\x1b[36mray::HAProxyManager.ready()\x1b[39m: Some protocols failed to start their listeners!")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        http = {"host": "127.0.0.1", "port": taken.getsockname()[1]}
        said = f"port {http['port']} is taken on this machine; choose another with --port; it was free when this start began"
        assert taken_meanwhile(http, proxy) == said
        assert taken_meanwhile(http, RuntimeError("another fault")) is None
    assert taken_meanwhile({**http, "port": free_port()}, proxy) is None
