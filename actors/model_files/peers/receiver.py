"""The side that has no files: pulls them in chunks, checks each before it is written, and goes on elsewhere when a peer fails."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actors.model_files.file_hash import CHUNK_BYTES, chunk_digests, remember_chunk_digests
from actors.model_files.peers.manifest import MODEL, TOKENIZER, FileEntry, Manifest, ManifestError, parse_manifest
from actors.model_files.peers.replies import Peer, PeerError, Peers, State
from actors.model_files.source import ModelSource
from cluster.process.cache import Progress, cache_dir, exclusive
from cluster.process.trusted_path import make_folder, other_writer

logger = logging.getLogger("bireme.runner")

# Enough to hide the way to and fro of a request; 32 MiB at most are on the way.
_WINDOW = 4
# What is left on the disk, for everything else.
_SPARE_BYTES = 256 << 20
_LOOK_AGAIN_S = 0.5
# No peer makes progress for so long: it hashes nothing more, and none of its places becomes free.
_PATIENCE_S = 30.0
# Where nodes begin together, the first engine may be there before the others are known.
_NOBODY_S = 10.0
_MANIFEST, _PART = "manifest.json", ".part-"


class Received(NamedTuple):
    """What came: from which node, how many bytes (none where the kept copy was the same), and in how many seconds."""

    source: ModelSource
    node: str
    num_bytes: int
    seconds: float

    def figures(self) -> dict[str, str | int | float]:
        """For ``/v1/status``."""
        return {"node": self.node, "num_bytes": self.num_bytes, "seconds": round(self.seconds, 3)}


class _Partial:
    """A transfer that is not complete.

    Args:
        parent: a folder for it alone.
    """

    def __init__(self, manifest: Manifest, parent: Path) -> None:
        self.manifest = manifest
        self.identity = manifest.identity
        self._parent = parent
        self.folder = parent / "new"
        self.folder.mkdir()
        self.missing = [(file, i) for file, entry in enumerate(manifest.files) for i in range(len(entry.digests))]
        for folder in (MODEL, TOKENIZER):
            (self.folder / folder).mkdir()
        for entry in manifest.files:
            with open(self.path(entry), "xb") as file:
                os.truncate(file.fileno(), entry.size)

    def path(self, entry: FileEntry) -> Path:
        return self.folder / entry.folder / entry.name

    def write(self, file: int, chunk: int, data: np.ndarray) -> None:
        handle = os.open(self.path(self.manifest.files[file]), os.O_WRONLY)
        try:
            view, offset = data.data, chunk * CHUNK_BYTES
            while view:
                num_written = os.pwrite(handle, view, offset)
                view, offset = view[num_written:], offset + num_written
        finally:
            os.close(handle)

    def remove(self) -> None:
        """The files; those that were installed are no longer here."""
        shutil.rmtree(self._parent, ignore_errors=True)


class FileReceiver:
    """The copy of one model on this node, for all processes of this user.

    Args:
        settings: the names under which the model is known.
        progress: called as ``progress(what, bytes done, bytes in all)``.
    """

    def __init__(self, settings: tuple[str, ...], progress: Progress | None = None) -> None:
        self._settings = settings
        self._progress = progress or (lambda what, done, total: None)
        self._name = f"receiver-{uuid.uuid4().hex[:12]}"
        self._parent = cache_dir() / "peer_models"
        self._folder = self._parent / hashlib.sha256("\0".join(settings).encode()).hexdigest()[:32]

    @property
    def may_be_used(self) -> bool:
        """Whether nobody else could exchange what is kept here."""
        return other_writer(self._folder) is None

    def kept(self) -> tuple[Manifest, ModelSource] | None:
        """The copy of an earlier transfer, every chunk of which has its hash; None if there is none."""
        try:
            manifest = parse_manifest((self._folder / _MANIFEST).read_text())
            for entry in manifest.files:
                path = self._folder / entry.folder / entry.name
                if path.stat().st_size != entry.size or chunk_digests(path) != entry.digests:
                    logger.warning("%s is damaged and is not used", path)
                    return None
        except (OSError, ManifestError):
            return None
        return manifest, manifest.source(self._folder)

    def receive(self, peers: Peers, wait_for: frozenset[State], patience_s: float = _PATIENCE_S) -> Received | None:
        """Take the files from the first peer that has them; None if none has, or there is no room for them.

        Processes of this machine take turns, so that a model comes once.

        Args:
            wait_for: peers in these states are asked again for ``patience_s`` seconds, longer while their bytes grow.
        """
        try:
            with exclusive(self._folder.with_suffix(".lock")):
                for part in self._parent.glob(f"{self._folder.name}{_PART}*"):
                    shutil.rmtree(part, ignore_errors=True)  # its process was killed
                return self._receive(peers, wait_for, patience_s)
        except OSError as error:
            logger.warning("no files are taken from other nodes: %s", error)
            return None

    def _receive(self, peers: Peers, wait_for: frozenset[State], patience_s: float) -> Received | None:
        kept, partial = self.kept(), None
        failed: set[str] = set()
        most_hashed, deadline, began = -1, time.monotonic() + patience_s, time.monotonic()
        try:
            while True:
                found = _found(peers)
                if found is None:
                    return None
                states = set()
                if not found and time.monotonic() < began + min(_NOBODY_S, patience_s):
                    states.add(State.STARTING)
                for peer in found:
                    if peer.engine_id in failed:
                        continue
                    try:
                        said = peer.describe(self._settings)
                        states.add(said.state)
                        if said.num_hashed > most_hashed and said.state is State.HASHING:
                            most_hashed, deadline = said.num_hashed, time.monotonic() + patience_s
                        if said.state is not State.OFFERED:
                            continue
                        manifest = parse_manifest(said.manifest)
                        if kept is not None and kept[0] == manifest:
                            return Received(kept[1], peer.node, 0, time.monotonic() - began)
                        if partial is None or partial.identity != manifest.identity:
                            if partial is not None:
                                partial.remove()
                                partial = None
                            partial = self._new_partial(manifest)
                        if not self._pull(peer, partial):
                            states.add(State.BUSY)
                            continue
                        source = self._install(partial)
                        return Received(source, peer.node, manifest.num_bytes, time.monotonic() - began)
                    except (PeerError, ManifestError) as error:
                        logger.warning("the model's files do not come from node %s: %s", peer.node, error)
                        failed.add(peer.engine_id)
                if not states & wait_for or time.monotonic() > deadline:
                    return None
                time.sleep(_LOOK_AGAIN_S)
        finally:
            if partial is not None:
                partial.remove()

    def _new_partial(self, manifest: Manifest) -> _Partial:
        make_folder(self._parent)
        free = shutil.disk_usage(self._parent).free
        if free < manifest.num_bytes + _SPARE_BYTES:
            raise OSError(f"{manifest.num_bytes} bytes do not fit on the disk of {self._parent}: {free} are free")
        parent = Path(tempfile.mkdtemp(prefix=self._folder.name + _PART, dir=self._parent))
        try:
            return _Partial(manifest, parent)
        except OSError:
            shutil.rmtree(parent, ignore_errors=True)
            raise

    def _pull(self, peer: Peer, partial: _Partial) -> bool:
        """Bring what is missing; False where the peer has no place for one more receiver."""
        total = partial.manifest.num_bytes
        pool = ThreadPoolExecutor(_WINDOW, "receive")
        running: dict[Future[bool], tuple[int, int]] = {}
        try:
            while partial.missing or running:
                for piece in partial.missing[: _WINDOW - len(running)]:
                    running[pool.submit(self._bring, peer, partial, *piece)] = piece
                    partial.missing.remove(piece)
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    if not future.result():
                        return False
                    del running[future]
                left = sum(self._size(partial, *piece) for piece in [*partial.missing, *running.values()])
                self._progress(f"model from node {peer.node}", total - left, total)
            return True
        finally:
            # Each of those that still run ends within the time limit of a call.
            pool.shutdown(wait=True, cancel_futures=True)
            for future, piece in running.items():
                if future.cancelled() or future.exception() is not None or not future.result():
                    partial.missing.append(piece)
            with contextlib.suppress(PeerError):
                peer.finished(self._name)

    def _bring(self, peer: Peer, partial: _Partial, file: int, chunk: int) -> bool:
        data = peer.read(self._name, partial.identity, file, chunk)
        if data is State.BUSY:
            return False
        if isinstance(data, State):
            raise PeerError(f"it has them no more ({data.value})")
        name = partial.manifest.files[file].name
        if data.nbytes != self._size(partial, file, chunk):
            raise PeerError(f"{name}: chunk {chunk} has {data.nbytes} bytes")
        if hashlib.sha256(data.data).hexdigest() != partial.manifest.files[file].digests[chunk]:
            raise PeerError(f"{name}: chunk {chunk} is damaged")
        partial.write(file, chunk, data)
        return True

    @staticmethod
    def _size(partial: _Partial, file: int, chunk: int) -> int:
        return min(CHUNK_BYTES, partial.manifest.files[file].size - chunk * CHUNK_BYTES)

    def _install(self, partial: _Partial) -> ModelSource:
        manifest = partial.manifest
        for entry in manifest.files:
            handle = os.open(partial.path(entry), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        (partial.folder / _MANIFEST).write_text(manifest.to_json())
        if self._folder.exists():
            # Who has mapped the old files keeps them.
            os.rename(self._folder, partial.folder.with_name("replaced"))
        os.rename(partial.folder, self._folder)
        for entry in manifest.files:
            remember_chunk_digests(self._folder / entry.folder / entry.name, entry.digests)
        return manifest.source(self._folder)


def _found(peers: Peers) -> list[Peer] | None:
    try:
        return peers.find()
    except PeerError as error:
        logger.warning("other nodes cannot be found: %s", error)
        return []
