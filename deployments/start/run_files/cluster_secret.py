"""A random secret that all ingresses of an application share, for as long as the Ray cluster lives.

It lies in the key-value store of Ray's head (GCS), which asks for Ray's token where that is on: not among the arguments of
Serve, whose change would replace replicas, and not on a disk. The first ingress that asks makes it.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

from cluster.tenant import SECRET_BYTES, own_secret
from deployments.ray_private.serve import gcs_client

logger = logging.getLogger("ray.serve")

_NAMESPACE = b"bireme"
_PATIENCE_S = 10.0


def cluster_secret(application: str, patience_s: float = _PATIENCE_S) -> bytes:
    """The secret of this application. One of this process's own, after a warning, if Ray's store does not answer in time: then
    cached prefixes are found less often, broken streams are not taken up elsewhere, and nothing is shared that should not be."""
    found: Future[bytes] = Future()
    # Ray's client repeats a call for longer than it was told to wait.
    threading.Thread(target=_look, args=(application, patience_s, found), daemon=True, name="cluster-secret").start()
    try:
        return found.result(patience_s)
    except Exception as error:
        logger.warning(
            "Ray's key-value store did not give the secret of this application (%s): until this ingress is replaced, "
            "what it has computed of prompts is cached for itself alone, and no other takes up its streams where they break",
            type(error).__name__,
        )
        return own_secret()


def _look(application: str, patience_s: float, found: Future[bytes]) -> None:
    try:
        found.set_result(_stored(f"secret::{application}".encode(), patience_s))
    except Exception as error:
        found.set_exception(error)


def _stored(name: bytes, patience_s: float) -> bytes:
    store = gcs_client()
    secret = store.internal_kv_get(name, namespace=_NAMESPACE, timeout=patience_s)
    if secret is None:
        # Of several ingresses that start at once the first one's stays.
        store.internal_kv_put(name, own_secret(), overwrite=False, namespace=_NAMESPACE, timeout=patience_s)
        secret = store.internal_kv_get(name, namespace=_NAMESPACE, timeout=patience_s)
    if not secret or len(secret) != SECRET_BYTES:
        raise RuntimeError(f"the store has {secret and len(secret)} bytes, not {SECRET_BYTES}")
    return secret
