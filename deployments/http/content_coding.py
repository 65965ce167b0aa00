"""Request bodies that came compressed: gzip, read up to a bound of what it holds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from cluster.api_errors import ApiError, bad_request

_GZIP = 16 + zlib.MAX_WBITS
# So much is held at once of what a small piece holds.
_PIECE = 2**16


class Gunzip:
    """Reads one gzip stream, the pieces of a body, in order."""

    def __init__(self) -> None:
        self._reader = zlib.decompressobj(_GZIP)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What ``data`` holds, at most 64 KiB at a time, so that the caller may stop between any two.

        Raises:
            ApiError: 400, it is no gzip, or goes on behind its end.
        """
        while data:
            if self._reader.eof:
                raise _broken("there is more behind its end")
            try:
                piece = self._reader.decompress(data, _PIECE)
            except zlib.error:
                raise _broken("it is damaged") from None
            data = self._reader.unconsumed_tail or self._reader.unused_data
            if piece:
                yield piece

    def end(self) -> None:
        """The body is over.

        Raises:
            ApiError: 400, the stream is not.
        """
        if not self._reader.eof:
            raise _broken("it ends too soon")


def gunzip_of(content_encoding: str | None) -> Gunzip | None:
    """The reader for a body with this header; None for one that is as it is.

    Raises:
        ApiError: 415 for another coding, or several.
    """
    coding = (content_encoding or "").strip().lower()
    if coding in ("", "identity"):
        return None
    if coding in ("gzip", "x-gzip"):
        return Gunzip()
    raise ApiError(
        415,
        f"the content encoding must be gzip or none, got {coding[:80]!r}",
        code="unsupported_content_encoding",
        headers={"Accept-Encoding": "gzip, identity"},
    )


def _broken(what: str) -> ApiError:
    return bad_request(f"the body is not valid gzip: {what}", code="invalid_gzip")
