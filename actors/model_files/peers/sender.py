"""The side that has the files: hashes them when it is first asked, and reads chunks for a few receivers at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from actors.model_files.file_hash import CHUNK_BYTES, chunk_digests
from actors.model_files.peers.manifest import Manifest, make_manifest, offered_files
from actors.model_files.peers.replies import Description, State
from actors.model_files.source import ModelSource

logger = logging.getLogger("bireme.runner")

# Each may have a few chunks under way: what an engine's node gives at once, of memory and of its network, stays small.
MAX_RECEIVERS = 4
_RECEIVER_IDLE_S = 10.0


class SendSlots:
    """Who may receive: at most ``limit`` receivers, each until it has asked for nothing for ``idle_s`` seconds."""

    def __init__(self, limit: int = MAX_RECEIVERS, idle_s: float = _RECEIVER_IDLE_S) -> None:
        self._limit, self._idle_s = limit, idle_s
        self._last: dict[str, float] = {}

    def take(self, receiver: str, now: float) -> bool:
        """Whether ``receiver`` may have a chunk at ``now``, in seconds of a monotonic clock."""
        self._last = {name: at for name, at in self._last.items() if now - at < self._idle_s}
        if receiver not in self._last and len(self._last) >= self._limit:
            return False
        self._last[receiver] = now
        return True

    def give_back(self, receiver: str) -> None:
        """It needs no more."""
        self._last.pop(receiver, None)


class FileSender:
    """Offers the files of one model for reading. Its thread lets the interpreter lock go while it reads and hashes.

    Args:
        settings: what must be equal in who asks: the names under which the model is known.

    Attributes:
        num_bytes_sent: so far.
    """

    def __init__(self, settings: tuple[str, ...]) -> None:
        self._settings = settings
        self._state = State.STARTING
        self._source: ModelSource | None = None
        self._slots = SendSlots()
        self._thread = ThreadPoolExecutor(1, "model-files")
        self._making: Future[Manifest] | None = None
        self._identity = ""
        self._paths: list[Path] = []
        self._stamps: list[tuple[int, int]] = []
        self._num_hashed = 0
        self.num_bytes_sent = 0

    def is_searching(self) -> None:
        """This node has no files either, and asks others."""
        self._state = State.SEARCHING

    def offer(self, source: ModelSource) -> None:
        """These are the files; callable from any thread."""
        self._source = source
        self._state = State.HASHING

    def describe(self, settings: tuple[str, ...]) -> Description:
        """Say at once what there is; what is not hashed yet is from now on."""
        if tuple(settings) != self._settings:
            return Description(State.OTHER_MODEL)
        if self._source is None:
            return Description(self._state)
        if self._making is None:
            self._making = self._thread.submit(self._make, self._source)
        if not self._making.done():
            return Description(State.HASHING, num_hashed=self._num_hashed)
        if (error := self._making.exception()) is not None:
            logger.warning("the model's files are not offered to other nodes: %s", error)
            self._making = None if isinstance(error, OSError) else self._making
            return Description(State.OTHER_MODEL)
        return Description(State.OFFERED, self._making.result().to_json())

    async def read(self, receiver: str, identity: str, file: int, chunk: int) -> np.ndarray | State:
        """Chunk number ``chunk`` of file number ``file`` of the manifest, as bytes; or why there is none.

        A receiver names no path: what is not in the manifest cannot be asked for.
        """
        if self._making is None or not self._making.done() or self._making.exception() is not None:
            return State.STARTING
        manifest = self._making.result()
        if identity != self._identity or not 0 <= file < len(manifest.files):
            return State.OTHER_MODEL
        if not 0 <= chunk < len(manifest.files[file].digests):
            return State.OTHER_MODEL
        if not self._slots.take(receiver, time.monotonic()):
            return State.BUSY
        size = min(CHUNK_BYTES, manifest.files[file].size - chunk * CHUNK_BYTES)
        loop = asyncio.get_running_loop()
        try:
            data = await loop.run_in_executor(self._thread, self._read, file, chunk * CHUNK_BYTES, size)
        except OSError as error:
            logger.warning("a file of the model can no longer be read: %s", error)
            self._making = None  # it may be another one now
            return State.OTHER_MODEL
        self.num_bytes_sent += size
        return data

    def finished(self, receiver: str) -> None:
        """The receiver needs no more."""
        self._slots.give_back(receiver)

    def _make(self, source: ModelSource) -> Manifest:
        files = offered_files(source)
        stamps = [_stamp(path) for _, path in files]
        self._num_hashed = 0
        manifest = make_manifest(source, files, [chunk_digests(path, self._hashed) for _, path in files])
        self._identity, self._paths, self._stamps = manifest.identity, [path for _, path in files], stamps
        return manifest

    def _hashed(self, num_bytes: int) -> None:
        self._num_hashed += num_bytes

    def _read(self, file: int, offset: int, size: int) -> np.ndarray:
        path = self._paths[file]
        if _stamp(path) != self._stamps[file]:
            raise OSError(f"{path} has changed")
        data = np.empty(size, np.uint8)
        handle = os.open(path, os.O_RDONLY)
        try:
            if os.preadv(handle, [data.data], offset) != size:
                raise OSError(f"{path} is shorter than it was")
        finally:
            os.close(handle)
        return data


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
