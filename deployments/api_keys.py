"""Bearer tokens that may use the API."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence

from cluster.config import is_api_key
from cluster.errors import BiremeError
from deployments.api_errors import ApiError
from deployments.tenant import NOBODY, Tenant, own_secret, tenant_of

API_KEY_VARIABLE = "BIREME_API_KEY"


class ApiKeys:
    """The accepted keys; none at all leaves the API open.

    Args:
        secret: gives what names of the keys' owners are derived with; called if there are keys.
        share_prefix_cache: all owners may share cached prefixes.
    """

    def __init__(
        self, keys: Sequence[str], secret: Callable[[], bytes] = own_secret, share_prefix_cache: bool = False
    ) -> None:
        # Digests have one length, so a comparison tells nothing about how long a key is.
        self._digests = [_digest(key) for key in keys]
        self._tenants: list[Tenant] = []
        if keys:
            derived_with, takes_turns = secret(), len(set(keys)) > 1
            self._tenants = [tenant_of(key, derived_with, takes_turns, share_prefix_cache) for key in keys]

    @classmethod
    def configured(
        cls, keys: Sequence[str], secret: Callable[[], bytes] = own_secret, share_prefix_cache: bool = False
    ) -> ApiKeys:
        """``keys``, or if there are none those in BIREME_API_KEY, separated by commas.

        Raises:
            BiremeError: the variable is set, but what it holds is no key: an API that should be closed must not open.
        """
        if not keys and API_KEY_VARIABLE in os.environ:
            keys = [key.strip() for key in os.environ[API_KEY_VARIABLE].split(",")]
            for i, key in enumerate(keys):
                if not is_api_key(key):
                    raise BiremeError(
                        f"{API_KEY_VARIABLE}: key {i} must be of visible ASCII characters without spaces, at least one; "
                        "unset the variable for an API that is open to all",
                        API_KEY_VARIABLE,
                    )
        return cls(keys, secret, share_prefix_cache)

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._digests)

    def check(self, authorization: str | None) -> Tenant:
        """Whom a request with this header belongs to. Takes as long for a near miss as for any other.

        Raises:
            ApiError: 401, the header does not carry an accepted key.
        """
        if not self._digests:
            return NOBODY
        scheme, _, token = (authorization or "").partition(" ")
        offered = _digest(token.strip())
        # Every key is compared, so the time does not say which one came close.
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "a valid API key is required: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return self._tenants[matches.index(True)]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
