"""What a person reads once the application answers: where it is, and a command to paste."""

from __future__ import annotations

import json


def base_url() -> str:
    """URL of this application's HTTP proxy, from inside a replica."""
    # The command line loads this module before it sets the variables that Ray and Serve read when they are imported.
    from ray import serve

    from deployments.ray_private.serve import http_options

    options = http_options()
    prefix = serve.status().applications[serve.get_replica_context().app_name]
    route = getattr(prefix, "route_prefix", None) or ""
    return f"http://{url_host(options.host)}:{options.port}{route.rstrip('/')}"


def url_host(host: str | None) -> str:
    """Where a client of this machine reaches a server that listens on ``host``, as it stands in a URL."""
    if host in (None, "0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in str(host) else str(host)


def ready_line(model_id: str, needs_key: bool) -> str:
    """The ready line and a curl command for ``model_id``."""
    url = base_url()
    return f"READY: {model_id} answers at {url}/v1 - try:\n{curl(url, model_id, needs_key)}"


def curl(url: str, model_id: str, needs_key: bool) -> str:
    """A command that asks the server something, in one line."""
    body = json.dumps(
        {
            "model": model_id,
            "messages": [{"role": "user", "content": "Name the capital of France."}],
            "max_tokens": 60,
        }
    )
    key = '-H "Authorization: Bearer $BIREME_API_KEY" ' if needs_key else ""
    quoted = body.replace("'", "'\\''")
    return f"curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' -d '{quoted}'"
