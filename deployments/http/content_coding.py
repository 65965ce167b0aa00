"""Request bodies that came compressed: gzip, read up to a bound of what it holds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from cluster.api_errors import ApiError, bad_request

_GZIP = 16 + zlib.MAX_WBITS
# So much is held at once of what a small piece holds.
_PIECE = 2**16
_MAX_EMPTY_MEMBERS = 16


class Gunzip:
    """Reads gzip, the pieces of a body, in order; one member or, as RFC 1952 has it, several."""

    def __init__(self) -> None:
        self._reader = zlib.decompressobj(_GZIP)
        self._num_empty = 0

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What ``data`` holds, at most 64 KiB at a time, so that the caller may stop between any two.

        Raises:
            ApiError: 400, it is no gzip, goes on with something else behind its end, or has very many members that hold nothing.
        """
        while data:
            if self._reader.eof:
                self._reader = zlib.decompressobj(_GZIP)
                # Each costs a reader, and the bound of what a body holds does not count it.
                self._num_empty += 1
                if self._num_empty > _MAX_EMPTY_MEMBERS:
                    raise _broken("it has too many members that hold nothing")
            try:
                piece = self._reader.decompress(data, _PIECE)
            except zlib.error:
                raise _broken("it is damaged") from None
            data = self._reader.unconsumed_tail or self._reader.unused_data
            if piece:
                self._num_empty = 0
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
        f"the content encoding must be gzip or none, got {coding[:80]}",
        code="unsupported_content_encoding",
        headers={"Accept-Encoding": "gzip, identity"},
    )


def _broken(what: str) -> ApiError:
    return bad_request(f"the body is not valid gzip: {what}", code="invalid_gzip")
