"""Weights as the device reads them, in one file a model, so that a later start neither reads, unpacks nor packs the model's own.

A file is a line of JSON (its own hash first, and a checksum of each array), zeros up to a page, and the arrays. It is written
under another name and renamed once it is on the disk; what is damaged, cut off, of another user or of another layout counts as
not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

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
# Of all models, where nothing else is set.
_DEFAULT_LIMIT_BYTES = 4 << 30
# What stays free of the disk.
_FREE_BYTES = 256 << 20
# Read at once while checksums are computed; it stays in the processor's cache.
_CHECKED_BYTES = 1 << 20
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}

Shape = tuple[int, ...]


def _digits(checksum: int) -> str:
    return f"{checksum:08x}"


class ReadyArray(NamedTuple):
    """What is known of an array: its type, a key of ``_ITEM_BYTES``, its shape, where in the file it begins, and the CRC-32 of
    its bytes in hexadecimal digits."""

    dtype: str
    shape: Shape
    offset: int = 0
    checksum: str = _digits(0)

    @property
    def num_bytes(self) -> int:
        return _ITEM_BYTES[self.dtype] * math.prod(self.shape)


class ReadyFile(NamedTuple):
    """A sound file.

    Attributes:
        path: opened anew by whoever reads it.
        arrays: by name.
        num_bytes: of the whole file.
    """

    path: Path
    arrays: dict[str, ReadyArray]
    num_bytes: int

    def mapped(self) -> dict[str, np.ndarray]:
        """Arrays by name, of types that NumPy has, not to be written to.

        Raises:
            OSError, ValueError: the file went or shrank.
        """
        with open(self.path, "rb") as file:
            # Copy on write: what shares memory with Paddle must look writable, and nothing reaches the file.
            data = np.memmap(file, np.uint8, "c", 0, (self.num_bytes,)).view(np.ndarray)
        return {
            name: data[array.offset : array.offset + array.num_bytes].view(array.dtype).reshape(array.shape)
            for name, array in self.arrays.items()
        }

    def damaged_array(self, num_threads: int, stop: threading.Event | None = None) -> str | None:
        """Read the whole file and compare its arrays' checksums.

        Args:
            num_threads: that read and compute at the same time, each one array.
            stop: set by whoever does not want to know any more.
        Returns:
            Name of an array that is not what was written; None if all are, or ``stop`` was set.
        Raises:
            OSError: the file cannot be read, or is shorter than it was.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            by_size = sorted(self.arrays.items(), key=lambda item: -item[1].num_bytes)
            with ThreadPoolExecutor(num_threads, "weights-check") as pool:
                sound = pool.map(lambda item: _is_sound(descriptor, item[1], stop), by_size)
                return next((name for (name, _), is_sound in zip(by_size, sound, strict=True) if not is_sound), None)
        finally:
            os.close(descriptor)

    def discard(self) -> None:
        """No later start finds this file; whoever has mapped it keeps it."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def prefetch(self) -> None:
        """Have the system read the file, if it is not in memory yet; nobody waits for that."""
        with open(self.path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class ReadyWeights:
    """The file of one model.

    Args:
        key: all that the bytes depend on.
        limit_bytes: that all files of this machine's user may take; 0 for none. None: four GiB, or one file that has more.
    """

    def __init__(self, key: str, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._folder = cache_dir() / "ready_weights"
        self._path = self._folder / (hashlib.sha256(key.encode()).hexdigest()[:32] + _SUFFIX)

    def find(self) -> ReadyFile | None:
        """None if there is no sound file."""
        if self._limit_bytes == 0 or other_writer(self._path) is not None:
            return None
        try:
            found = _read_header(self._path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not used (%s); it is made again", self._path, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path)  # who was used last stays longest
        return found

    def write(self, arrays: Mapping[str, ReadyArray], pieces: Callable[[str], Iterable[np.ndarray]]) -> bool:
        """Keep arrays, and remove files that were not used for longest until all fit the limit.

        Args:
            pieces: the uint8 content of the array of that name, cut at will; each piece is read before the next is asked for.
        Returns:
            Whether that was done. Not where it is not worth it, not allowed, or another process does it now; nor, after a
            word in the log, where it is too large, or the disk is full or cannot be written to.
        """
        num_bytes = sum(_padded(array.num_bytes) for array in arrays.values())
        if num_bytes < MIN_BYTES or self._limit_bytes == 0 or other_writer(self._path) is not None:
            return False
        limit = max(_DEFAULT_LIMIT_BYTES, num_bytes) if self._limit_bytes is None else self._limit_bytes
        if num_bytes > limit:
            logger.info(
                "the next start will read the model's files again: its %.1f GiB are more than ready_weights_gb allows",
                num_bytes / 2**30,
            )
            return False
        part = self._path.with_suffix(_PART_SUFFIX)
        try:
            make_folder(self._folder)
            self._make_room(num_bytes, limit)
            try:
                file = open(part, "xb")  # noqa: SIM115 (closed below)
            except FileExistsError:
                return False
            try:
                with file:
                    _write(file, arrays, pieces)
                os.replace(part, self._path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the next start will read the model's files again: %s", error)
            return False
        return True

    def _make_room(self, num_bytes: int, limit: int) -> None:
        for part in self._folder.glob("*" + _PART_SUFFIX):
            if time.time() - part.stat().st_mtime > _ABANDONED_S:
                part.unlink(missing_ok=True)
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob("*" + _SUFFIX))
        taken = num_bytes + sum(size for _, size, path in files if path != self._path)
        for _, size, path in files:
            if taken > limit and path != self._path:
                path.unlink(missing_ok=True)  # who has mapped it keeps it
                taken -= size
        free = shutil.disk_usage(self._folder).free
        if free < num_bytes + _FREE_BYTES:
            raise OSError(f"{num_bytes} bytes do not fit on the disk of {self._folder}: {free} are free")


def read_at(descriptor: int, begin: int, offset: int, into: np.ndarray) -> None:
    """Fill ``into`` from the file's byte ``begin + offset`` on.

    Raises:
        OSError: it cannot be read, or ends before.
    """
    view, done = into.data, 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], begin + offset + done)
        if count == 0:
            raise OSError("the file of ready weights ended early")
        done += count


def _is_sound(descriptor: int, array: ReadyArray, stop: threading.Event | None) -> bool:
    buffer = np.empty(min(_CHECKED_BYTES, array.num_bytes), np.uint8)
    checksum = 0
    for offset in range(0, array.num_bytes, _CHECKED_BYTES):
        if stop is not None and stop.is_set():
            return True
        piece = buffer[: array.num_bytes - offset]
        read_at(descriptor, array.offset, offset, piece)
        checksum = zlib.crc32(piece.data, checksum)
    return _digits(checksum) == array.checksum


def _write(file: BinaryIO, arrays: Mapping[str, ReadyArray], pieces: Callable[[str], Iterable[np.ndarray]]) -> None:
    # The header is written once more when the checksums are known; it has the same length then.
    checksums = dict.fromkeys(arrays, 0)
    file.write(_header(arrays, checksums))
    for name, array in arrays.items():
        written = 0
        for piece in pieces(name):
            checksums[name] = zlib.crc32(piece.data, checksums[name])
            written += file.write(piece.data)
        if written != array.num_bytes:
            raise ValueError(f"{name}: {written} bytes, not {array.num_bytes}")
        file.write(bytes(_padded(written) - written))
    file.seek(0)
    file.write(_header(arrays, checksums))
    file.flush()
    os.fsync(file.fileno())


def _header(arrays: Mapping[str, ReadyArray], checksums: Mapping[str, int]) -> bytes:
    entries, offset = [], 0
    for name, array in arrays.items():
        entries.append([name, list(array.shape), offset, array.dtype, _digits(checksums[name])])
        offset += _padded(array.num_bytes)
    header = json.dumps({"arrays": entries, "num_bytes": offset}).encode()
    line = hashlib.sha256(header).hexdigest().encode() + b" " + header + b"\n"
    return line.ljust(_padded(len(line)), b"\0")


def _read_header(path: Path) -> ReadyFile:
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
    arrays = {
        name: ReadyArray(dtype, tuple(shape), start + offset, checksum)
        for name, shape, offset, dtype, checksum in found["arrays"]
    }
    return ReadyFile(path, arrays, size)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE) * _PAGE
