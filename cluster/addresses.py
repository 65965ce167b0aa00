"""The addresses under which one service answers, and which of them is used now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.client_errors import ClientError


class Addresses:
    """Stays with an address as long as it answers, and goes to the next one when it does not.

    Args:
        urls: with or without /v1; one string may name several, with commas between them.

    Raises:
        ClientError: there is none, or one does not begin with http:// or https://.
    """

    def __init__(self, urls: str | Sequence[str]) -> None:
        given = urls.split(",") if isinstance(urls, str) else urls
        self._all = [url.strip().rstrip("/").removesuffix("/v1") for url in given if url.strip()]
        if not self._all:
            raise ClientError("url: no address given; expected one like http://127.0.0.1:8000", "url")
        for url in self._all:
            if not url.startswith(("http://", "https://")):
                raise ClientError(f"url: expected http://HOST:PORT or https://HOST:PORT, got {url!r}", "url")
        self._now = 0

    def __len__(self) -> int:
        return len(self._all)

    def __str__(self) -> str:
        return " and ".join(self._all)

    @property
    def current(self) -> str:
        """Where the next request goes."""
        return self._all[self._now]

    def once_each(self) -> Iterator[str]:
        """Every address once, the current one first, whatever happens to it meanwhile."""
        first = self._now
        for i in range(len(self._all)):
            yield self._all[(first + i) % len(self._all)]

    def in_turn(self) -> list[str]:
        """All addresses in the order in which they follow the current one, which is the last."""
        return self._all[self._now + 1 :] + self._all[: self._now + 1]

    def go_to(self, address: str) -> None:
        """The next request goes there."""
        self._now = self._all.index(address)

    def leave(self, address: str) -> None:
        """``address`` failed. Of several requests that failed there only the first one moves on."""
        if address == self.current:
            self._now = (self._now + 1) % len(self._all)
