"""The addresses under which one service answers, and which of them is used now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import httpx

from cluster.client.errors import ClientError

# An address that was given and failed is tried again after so long, where what answers meanwhile is only a way round.
_RETURN_S = 30.0


def without_password(url: str) -> str:
    """``url`` as it may be shown: without the name and password that it may have in front of its host."""
    scheme, mark, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def _is_address(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return url.startswith(("http://", "https://")) and bool(parsed.host) and 0 < (parsed.port or 1) < 2**16


class Addresses:
    """Stays with an address as long as it answers, and goes to the next one when it does not.

    Args:
        urls: with or without /v1; one string may name several, with commas between them.
        now: seconds of a clock that does not go back.

    Raises:
        ClientError: there is none, or one is no http:// or https:// with a host, and a port if there is one.
    """

    def __init__(self, urls: str | Sequence[str], now: Callable[[], float] = time.monotonic) -> None:
        given = urls.split(",") if isinstance(urls, str) else urls
        self._all = [url.strip().rstrip("/").removesuffix("/v1") for url in given if url.strip()]
        if not self._all:
            raise ClientError("url: no address given; expected one like http://127.0.0.1:8000", "url")
        for url in self._all:
            if not _is_address(url):
                raise ClientError(
                    f"url: expected http://HOST:PORT or https://HOST:PORT, got {without_password(url)!r}", "url"
                )
        self._num_given = len(self._all)
        self._now = 0
        self._clock = now
        self._left_at = 0.0

    def __len__(self) -> int:
        return len(self._all)

    @property
    def num_given(self) -> int:
        """Without what was learned."""
        return self._num_given

    @property
    def given(self) -> list[str]:
        return self._all[: self._num_given]

    def __str__(self) -> str:
        return " and ".join(map(without_password, self._all))

    @property
    def current(self) -> str:
        """Where the next request goes."""
        return self._all[self._now]

    def is_learned(self, address: str) -> bool:
        """Its server named it; it was not given."""
        return address in self._all[self._num_given :]

    def learn_port(self, port: str) -> None:
        """The host of the only address that was given answers on this port, too, says its server. Nothing is learned of a server
        behind TLS, for what listens there speaks none. The last port that was named counts."""
        if self._num_given > 1 or not port.isdecimal() or not 0 < int(port) < 2**16:
            return
        given = httpx.URL(self._all[0])
        also = str(given.copy_with(port=int(port))).rstrip("/")
        if given.scheme == "http" and also not in self._all:
            self._now = 0
            self._all = [self._all[0], also]

    def settle(self) -> None:
        """A new request begins: from an address that was learned back to the one that was given, if that was left long ago."""
        if self._now >= self._num_given and self._clock() - self._left_at > _RETURN_S:
            self._now = 0

    def once_each(self) -> Iterator[str]:
        """Every address once, the current one first, whatever happens to it meanwhile."""
        first = self._now
        for i in range(len(self._all)):
            yield self._all[(first + i) % len(self._all)]

    def in_turn(self) -> list[str]:
        """All addresses in the order in which they follow the current one, which is the last of those that were given. What was
        learned is only a way round, and comes after them."""
        if self._now >= self._num_given:
            return list(self._all)
        return self._all[self._now + 1 : self._num_given] + self._all[: self._now + 1] + self._all[self._num_given :]

    def go_to(self, address: str) -> None:
        """The next request goes there."""
        self._move(self._all.index(address))

    def leave(self, address: str) -> None:
        """``address`` failed. Of several requests that failed there only the first one moves on."""
        now = self._now
        if address == self._all[now]:
            self._move((now + 1) % len(self._all))

    def _move(self, index: int) -> None:
        if self._now < self._num_given <= index:
            self._left_at = self._clock()
        self._now = index
