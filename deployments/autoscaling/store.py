"""What ingresses, the policy and a person at a terminal leave for one another, in the key-value store of Ray's head (GCS).

Calls take half a millisecond, and seconds where the head does not answer: nothing that must go on makes them on its own thread.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

from deployments.ray_private.serve import gcs_client

# Names of entries: what a person changed; what the policy keeps over a restart of Serve's controller; what it decided last.
SETTINGS, STATE, LATEST = "settings", "state", "latest"
_REPORT = "ingress."
_NAMESPACE = b"bireme"
_PREFIX = "autoscaling::"
_TIMEOUT_S = 2.0


class ScalingStore:
    """The entries of one application.

    Args:
        application: Serve's name of it.
        client: of Ray's head; None: of the cluster that this process belongs to.
    """

    def __init__(self, application: str, client: Any = None) -> None:
        self._prefix = f"{_PREFIX}{quote(application, safe='')}::"
        self._client = client or gcs_client()

    def get(self, name: str) -> bytes | None:
        return self._client.internal_kv_get(self._key(name), namespace=_NAMESPACE, timeout=_TIMEOUT_S)

    def put(self, name: str, value: bytes) -> None:
        self._client.internal_kv_put(self._key(name), value, True, namespace=_NAMESPACE, timeout=_TIMEOUT_S)

    def remove(self, name: str) -> None:
        self._client.internal_kv_del(self._key(name), False, namespace=_NAMESPACE, timeout=_TIMEOUT_S)

    def all(self, beginning: str = "") -> dict[str, bytes]:
        """Every entry by name, of those whose names begin so."""
        keys = self._client.internal_kv_keys(self._key(beginning), namespace=_NAMESPACE, timeout=_TIMEOUT_S)
        found = self._client.internal_kv_multi_get(keys, namespace=_NAMESPACE, timeout=_TIMEOUT_S) if keys else {}
        return {key.decode().removeprefix(self._prefix): value for key, value in found.items() if value is not None}

    def _key(self, name: str) -> bytes:
        return f"{self._prefix}{name}".encode()


def report_name(ingress: str) -> str:
    """The entry in which an ingress says what it knows."""
    return _REPORT + ingress


def is_report(name: str) -> bool:
    return name.startswith(_REPORT)


def applications(client: Any) -> list[str]:
    """Names of the applications whose policy has said something."""
    keys = client.internal_kv_keys(_PREFIX.encode(), namespace=_NAMESPACE, timeout=_TIMEOUT_S)
    parts = [key.decode().removeprefix(_PREFIX).rpartition("::") for key in keys]
    return sorted(unquote(application) for application, _, name in parts if name == LATEST)
