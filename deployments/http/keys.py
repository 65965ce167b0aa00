"""Bearer tokens that may use the API, and the ways on which they get here without others reading them."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.api_errors import ApiError
from cluster.api_key import is_api_key
from cluster.errors import BiremeError
from cluster.tenant import Tenant, nobody_of, own_secret, tenant_of
from deployments.start.run_files.key_file import read_keys

API_KEY_VARIABLE = "BIREME_API_KEY"


class ApiKeys:
    """The accepted keys; none at all leaves the API open.

    Args:
        keys: as they are sent.
        digests: of more keys (``key_digest``).
        secret: gives what is derived with for each owner; called once.
        share_prefix_cache: all owners may share cached prefixes.
    """

    def __init__(
        self,
        keys: Sequence[str] = (),
        digests: Sequence[bytes] = (),
        secret: Callable[[], bytes] = own_secret,
        share_prefix_cache: bool = False,
    ) -> None:
        # Digests have one length, so a comparison tells nothing about how long a key is.
        self._digests = [*(key_digest(key) for key in keys), *digests]
        derived_with, takes_turns = secret(), len(set(self._digests)) > 1
        self._tenants = [tenant_of(key, derived_with, takes_turns, share_prefix_cache) for key in self._digests]
        self._nobody = nobody_of(derived_with)

    @classmethod
    def configured(
        cls,
        keys: Sequence[str] = (),
        file: str | None = None,
        digests: Sequence[bytes] = (),
        secret: Callable[[], bytes] = own_secret,
        share_prefix_cache: bool = False,
    ) -> ApiKeys:
        """``keys``, those in ``file``, and those of which ``digests`` are; if there are none of these, those in BIREME_API_KEY,
        separated by commas.

        Raises:
            BiremeError: the file or the variable holds no key: an API that should be closed must not open.
        """
        if file is not None:
            return cls(read_keys(Path(file)), digests, secret, share_prefix_cache)
        if not keys and not digests and API_KEY_VARIABLE in os.environ:
            keys = [key.strip() for key in os.environ[API_KEY_VARIABLE].split(",")]
            for i, key in enumerate(keys):
                if not is_api_key(key):
                    raise BiremeError(
                        f"{API_KEY_VARIABLE}: key {i} must be of visible ASCII characters without spaces, at least one; "
                        "unset the variable for an API that is open to all",
                        API_KEY_VARIABLE,
                    )
        return cls(keys, digests, secret, share_prefix_cache)

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
            return self._nobody
        scheme, _, token = (authorization or "").partition(" ")
        offered = key_digest(token.strip())
        # Every key is compared, so the time does not say which one came close.
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "a valid API key is required: send it in the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return self._tenants[matches.index(True)]


def key_digest(key: str) -> bytes:
    """What is kept of a key, and all that travels of one that was given from Python."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
