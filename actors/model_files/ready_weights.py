"""Weights as the matmuls read them, in one mapped file a model, so that a later start neither reads, unpacks nor packs them.

A file is a line of JSON (its own hash first), zeros up to a page, and the arrays. It is written under another name and renamed
once it is on the disk; what is damaged, cut off, of another user or of another layout counts as not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cluster.process.cache import cache_dir
from cluster.process.trusted_path import make_folder, other_writer

logger = logging.getLogger("bireme.runner")

_PAGE = 4096
_MAX_HEADER_BYTES = 16 << 20
_SUFFIX, _PART_SUFFIX = ".weights", ".part"
# Nobody writes to a part that did not change for so long.
_ABANDONED_S = 120.0
# Less than this is read in no time.
MIN_BYTES = 32 << 20


class ReadyWeights:
    """The file of one model.

    Args:
        key: all that the bytes depend on.
        limit_bytes: that all files of this machine's user may take; 0 for none.
    """

    def __init__(self, key: str, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._folder = cache_dir() / "ready_weights"
        self._path = self._folder / (hashlib.sha256(key.encode()).hexdigest()[:32] + _SUFFIX)

    def read(self) -> dict[str, np.ndarray] | None:
        """float32 arrays by name, mapped and not to be written to; None if there is no sound file."""
        if not self._limit_bytes or other_writer(self._path) is not None:
            return None
        try:
            arrays = _mapped(self._path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not used (%s); it is made again", self._path, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path)  # who was used last stays longest
        return arrays

    def write(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Keep float32 ``arrays``, and remove files that were not used for longest until all fit the limit.

        Returns:
            Whether that was done. Not where it is not worth it, not allowed, or another process does it now; nor, after a
            warning, where the disk is full or cannot be written to.
        """
        num_bytes = sum(_padded(array.nbytes) for array in arrays.values())
        if not MIN_BYTES <= num_bytes <= self._limit_bytes or other_writer(self._path) is not None:
            return False
        part = self._path.with_suffix(_PART_SUFFIX)
        try:
            make_folder(self._folder)
            self._make_room(num_bytes)
            try:
                file = open(part, "xb")  # noqa: SIM115 (closed below)
            except FileExistsError:
                return False
            try:
                with file:
                    _write(file, arrays)
                os.replace(part, self._path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the next start will read the model's files again: %s", error)
            return False
        return True

    def _make_room(self, num_bytes: int) -> None:
        for part in self._folder.glob("*" + _PART_SUFFIX):
            if time.time() - part.stat().st_mtime > _ABANDONED_S:
                part.unlink(missing_ok=True)
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob("*" + _SUFFIX))
        taken = num_bytes + sum(size for _, size, path in files if path != self._path)
        for _, size, path in files:
            if taken > self._limit_bytes and path != self._path:
                path.unlink(missing_ok=True)  # who has mapped it keeps it
                taken -= size


def _write(file, arrays: Mapping[str, np.ndarray]) -> None:
    entries, offset = [], 0
    for name, array in arrays.items():
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError(f"{name}: needs contiguous float32, got {array.dtype}")
        entries.append([name, list(array.shape), offset])
        offset += _padded(array.nbytes)
    header = json.dumps({"arrays": entries, "num_bytes": offset}).encode()
    line = hashlib.sha256(header).hexdigest().encode() + b" " + header + b"\n"
    file.write(line.ljust(_padded(len(line)), b"\0"))
    for array in arrays.values():
        file.write(array.reshape(-1).view(np.uint8).data)
        file.write(bytes(_padded(array.nbytes) - array.nbytes))
    file.flush()
    os.fsync(file.fileno())


def _mapped(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        line = file.readline(_MAX_HEADER_BYTES)
        size = os.fstat(file.fileno()).st_size
        digest, _, header = line.rstrip(b"\n").partition(b" ")
        if hashlib.sha256(header).hexdigest().encode() != digest:
            raise ValueError("its header is damaged")
        found = json.loads(header)
        start = _padded(len(line))
        if size != start + found["num_bytes"]:
            raise ValueError(f"it has {size} bytes, not {start + found['num_bytes']}")
        # Copy on write: what shares memory with Paddle must look writable, and nothing reaches the file.
        data = np.memmap(file, np.uint8, "c", 0, (size,)).view(np.ndarray)
    arrays = {}
    for name, shape, offset in found["arrays"]:
        num_bytes = 4 * int(np.prod(shape))
        arrays[name] = data[start + offset : start + offset + num_bytes].view(np.float32).reshape(shape)
    return arrays


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE) * _PAGE
