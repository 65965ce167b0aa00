"""Whom a request belongs to: what engines may know of an API key, so that its requests share a queue fairly, and a prefix cache
with nobody else; and what answers of this key are signed with. Neither the key nor anything from which it can be guessed leaves
the ingress.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import NamedTuple

SECRET_BYTES = 32


def own_secret() -> bytes:
    """A random secret that no other process has."""
    return secrets.token_bytes(SECRET_BYTES)


class Tenant(NamedTuple):
    """The owner of one API key, or whoever comes without one.

    Attributes:
        id: short name, equal in every ingress of the cluster; empty where requests do not take turns by key.
        cache_key: of whoever may share cached prefixes; empty where all may.
        event_key: signs the ids of events, equal in every ingress of the cluster; one of this process's own unless told.
    """

    id: str = ""
    cache_key: bytes = b""
    event_key: bytes = own_secret()

    def cache_salt(self, client_salt: str) -> str:
        """The salt of a request's cached prefixes: another one for each pair of key and ``client_salt``, or that of the client
        where all may share them."""
        return _derived(self.cache_key, client_salt) if self.cache_key else client_salt


NOBODY = Tenant()


def nobody_of(secret: bytes) -> Tenant:
    """Whoever comes without a key to a cluster with this secret."""
    return Tenant(event_key=bytes.fromhex(_derived(secret, "event ids")))


def tenant_of(key_digest: bytes, secret: bytes, takes_turns: bool, shares_cache: bool) -> Tenant:
    """The owner of the key with this digest. Who lacks the cluster's ``secret`` cannot try keys against what is derived of it."""
    name = _derived(secret, f"turns {key_digest.hex()}")[:16] if takes_turns else ""
    cache_key = b"" if shares_cache else bytes.fromhex(_derived(secret, f"prefix cache {key_digest.hex()}"))
    return Tenant(name, cache_key, bytes.fromhex(_derived(secret, f"event ids {key_digest.hex()}")))


def _derived(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
