"""Which address a start shows."""

from __future__ import annotations

from deployments.commands.serving.start_watcher import StartWatcher
from deployments.start.serve_config import BUILDER, configured_models


def test_the_address_shown_is_that_of_the_first_application_of_ours():
    ours = {"import_path": BUILDER, "route_prefix": "/ours", "args": {}}
    config = {
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [{"import_path": "theirs:app", "route_prefix": "/theirs"}, ours],
    }
    watcher = StartWatcher.__new__(StartWatcher)
    watcher._config, (watcher._application, watcher._model) = config, configured_models(config)[0]
    assert watcher._url == "http://127.0.0.1:8000/ours"
