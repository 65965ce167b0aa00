"""A model's files from peers: the same bytes or none, whatever a peer does, and nothing half done stays."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.model_files import file_hash
from actors.model_files.peers import find_model as finding
from actors.model_files.peers import manifest as manifests
from actors.model_files.peers import receiver, sender
from actors.model_files.peers.manifest import ManifestError, parse_manifest
from actors.model_files.peers.replies import Description, PeerError, State
from actors.model_files.source import resolve_model
from cluster.config import EngineConfig
from cluster.errors import ModelNotHereError

CHUNK = 1000
ALL = frozenset(State)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (file_hash, manifests, sender, receiver):
        monkeypatch.setattr(module, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(receiver, "_LOOK_AGAIN_S", 0.01)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "there" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text("")
    (folder / "model.safetensors").write_bytes(np.random.default_rng(1).bytes(5 * CHUNK + 1))
    (folder / "notes.txt").write_text("not of the model")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIREME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "peer_models"


class LocalPeer:
    """A sender in this process; ``spoil(call number, data)`` stands for what can happen on the way."""

    def __init__(self, model: Path, names: tuple[str, ...], spoil: Callable = lambda call, data: data, engine_id="a"):
        self.engine_id, self.node = engine_id, f"node-{engine_id}"
        self.sender = sender.FileSender(names)
        self.sender.offer(resolve_model(str(model)))
        while self.sender.describe(names).state is State.HASHING:
            time.sleep(0.001)
        self.spoil, self.chunks = spoil, []
        self.calls, self._count = 0, itertools.count(1)

    def describe(self, names: tuple[str, ...]) -> Description:
        return self.sender.describe(names)

    def read(self, name: str, identity: str, file: int, chunk: int) -> np.ndarray | State:
        self.calls = call = next(self._count)  # several threads call
        data = asyncio.run(self.sender.read(name, identity, file, chunk))
        result = self.spoil(call, data)
        self.chunks.append((file, chunk))
        return result

    def finished(self, name: str) -> None:
        self.sender.finished(name)


class Some:
    def __init__(self, *peers: LocalPeer) -> None:
        self.peers = peers

    def find(self) -> list | None:
        return list(self.peers) or None


NAMES = ("owner/name", "", "auto")


def receive(*peers, patience_s: float = 5.0, wait_for: frozenset[State] = ALL) -> receiver.Received | None:
    return receiver.FileReceiver(NAMES).receive(Some(*peers), wait_for, patience_s)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def remains(cache: Path) -> list[str]:
    """What a transfer left, besides locks and whole copies."""
    return [path.name for path in cache.iterdir() if ".part-" in path.name] if cache.exists() else []


def test_every_file_that_is_read_arrives_bit_for_bit(model, cache):
    shown = []
    peer = LocalPeer(model, NAMES)
    found = receiver.FileReceiver(NAMES, lambda *progress: shown.append(progress)).receive(Some(peer), ALL)
    assert found is not None
    (model / "notes.txt").unlink()
    assert content(found.source.path) == content(model)
    assert (found.source.kind, found.source.name, found.source.tokenizer) == ("safetensors", "model", found.source.path)
    assert found.num_bytes == sum(map(len, content(model).values())) == peer.sender.num_bytes_sent
    assert shown[-1] == ("model from node node-a", found.num_bytes, found.num_bytes)
    assert remains(cache) == []
    again = receive(peer)
    assert again is not None
    assert (again.num_bytes, again.source) == (0, found.source)  # the kept copy is the same


@pytest.mark.parametrize(
    "spoil",
    [
        lambda call, data: data[:-1] if call == 4 else data,
        lambda call, data: data ^ 1 if call == 4 else data,
        lambda call, data: State.OTHER_MODEL if call == 4 else data,
        lambda call, data: np.zeros_like(data) if call == 4 else data,
    ],
    ids=["cut off", "damaged", "changed", "zeros"],
)
def test_what_is_not_as_promised_is_thrown_away(model, cache, spoil):
    assert receive(LocalPeer(model, NAMES, spoil)) is None
    assert remains(cache) == []
    assert receiver.FileReceiver(NAMES).kept() is None


def test_a_sender_that_dies_is_followed_by_the_next_with_what_is_missing(model):
    def dies(call, data):
        if call > 5:
            raise PeerError("killed")
        return data

    first, second = LocalPeer(model, NAMES, dies), LocalPeer(model, NAMES, engine_id="b")
    found = receive(first, second)
    assert found is not None
    (model / "notes.txt").unlink()
    assert content(found.source.path) == content(model)
    assert found.node == "node-b"
    assert len(first.chunks) == 5
    assert not set(first.chunks) & set(second.chunks)


def test_a_full_disk_leaves_nothing_and_is_no_error(model, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as during:
        during.setattr(os, "pwrite", full)
        assert receive(LocalPeer(model, NAMES)) is None
    assert remains(cache) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2**20))
    peer = LocalPeer(model, NAMES)
    assert receive(peer) is None
    assert peer.calls == 0


def test_parts_of_a_killed_process_go(model, cache):
    key = receiver.FileReceiver(NAMES)._folder.name
    (cache / f"{key}.part-killed" / "new").mkdir(parents=True)
    assert receive(LocalPeer(model, NAMES)) is not None
    assert remains(cache) == []


def test_a_kept_copy_that_has_changed_is_not_used(model):
    found = receive(LocalPeer(model, NAMES))
    assert found is not None
    assert receiver.FileReceiver(NAMES).kept() is not None
    weights = found.source.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert receiver.FileReceiver(NAMES).kept() is None


def test_other_bytes_under_the_same_name_take_the_place_of_the_copy(model, cache):
    receive(LocalPeer(model, NAMES))
    (model / "model.safetensors").write_bytes(b"other")
    found = receive(LocalPeer(model, NAMES))
    assert found is not None
    assert (found.source.path / "model.safetensors").read_bytes() == b"other"
    assert remains(cache) == []


def test_files_that_change_under_the_sender_are_not_mixed(model):
    peer = LocalPeer(model, NAMES, lambda call, data: (model / "model.safetensors").write_bytes(b"new") and data)
    assert receive(peer) is None


def test_another_model_is_not_offered_and_who_only_starts_is_waited_for(model):
    assert receive(LocalPeer(model, ("other", "", "auto")), wait_for=frozenset({State.STARTING})) is None
    late = LocalPeer(model, NAMES)
    late.sender = sender.FileSender(NAMES)
    asked = 0

    def describe(names):
        nonlocal asked
        asked += 1
        if asked == 3:
            late.sender.offer(resolve_model(str(model)))
        return late.sender.describe(names)

    late.describe = describe  # type: ignore[method-assign]
    assert receive(late) is not None
    late.sender = sender.FileSender(NAMES)
    assert receive(late, patience_s=0.05) is None
    late.sender.is_searching()
    asked = 10
    assert receive(late, wait_for=frozenset({State.STARTING})) is None
    assert asked == 11


def test_an_engine_that_is_not_known_yet_is_waited_for_where_there_are_other_nodes(model):
    peer, looks = LocalPeer(model, NAMES), iter([[], []])

    class Late(Some):
        def find(self):
            return next(looks, [peer])

    assert receiver.FileReceiver(NAMES).receive(Late(), frozenset({State.BUSY})) is None
    assert receiver.FileReceiver(NAMES).receive(Late(), frozenset({State.STARTING})) is not None
    assert next(looks, None) is None


def test_a_tokenizer_of_its_own_comes_with_what_is_read_beside_it(model, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "unread.json"):
        (elsewhere / name).write_text("{}")
    peer = LocalPeer(model, NAMES)
    peer.sender = sender.FileSender(NAMES)
    peer.sender.offer(resolve_model(str(model), tokenizer=str(elsewhere / "tokenizer.json")))
    found = receive(peer)
    assert found is not None
    assert found.source.tokenizer == found.source.path.parent / "tokenizer" / "tokenizer.json"
    assert sorted(content(found.source.tokenizer.parent)) == ["tokenizer.json", "tokenizer_config.json"]


def test_a_sender_has_so_many_receivers_and_no_more():
    slots = sender.SendSlots(2, 10)
    assert [slots.take(name, 0) for name in "abc"] == [True, True, False]
    assert slots.take("a", 9)
    assert slots.take("c", 10)  # b has asked for nothing for ten seconds
    assert not slots.take("b", 11)
    slots.give_back("a")
    assert slots.take("b", 11)


def test_a_busy_sender_is_asked_again(model):
    peer = LocalPeer(model, NAMES)
    while not peer.describe(NAMES).manifest:
        pass
    identity = parse_manifest(peer.describe(NAMES).manifest).identity
    for number in range(sender.MAX_RECEIVERS):
        assert isinstance(asyncio.run(peer.sender.read(f"other-{number}", identity, 0, 0)), np.ndarray)
    assert receive(peer, patience_s=0.05) is None
    peer.spoil = lambda call, data: peer.sender.finished("other-0") or data
    assert receive(peer) is not None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.one_of(st.text(max_size=20), st.sampled_from(["..", ".", "", "/etc/passwd", "../x", "a/b", "a\\b", "C:x"])),
    folder=st.one_of(st.sampled_from(["model", "tokenizer"]), st.text(max_size=4)),
)
def test_no_name_leads_out_of_the_folder(name: str, folder: str):
    digest = "0" * 64
    text = json.dumps(["safetensors", "m", 0, "model", "", [[folder, name, 1, [digest]]]])
    try:
        entry = parse_manifest(text).files[0]
    except ManifestError:
        return
    place = Path(os.path.normpath(Path("/base", entry.folder, entry.name)))
    assert place.parent in (Path("/base/model"), Path("/base/tokenizer"))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=st.one_of(JSON, st.tuples(JSON, JSON, JSON, JSON, JSON, st.lists(JSON, max_size=3))), raw=st.text())
def test_whatever_a_peer_says_is_a_manifest_or_refused(value, raw):
    for text in (json.dumps(value), raw):
        with pytest.raises(ManifestError):
            parse_manifest(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(change=st.sampled_from(["size", "digests", "twice", "path", "kind", "seed"]))
def test_a_manifest_that_contradicts_itself_is_refused(model, change):
    source = resolve_model(str(model))
    files = manifests.offered_files(source)
    good = manifests.make_manifest(source, files, [file_hash.chunk_digests(path) for _, path in files])
    first, *others = good.files
    bad = {
        "size": good._replace(files=(first._replace(size=first.size + CHUNK), *others)),
        "digests": good._replace(files=(first._replace(digests=("x" * 64,)), *others)),
        "twice": good._replace(files=(first, first)),
        "path": good._replace(path="model/absent.gguf"),
        "kind": good._replace(kind="pickle"),
        "seed": good._replace(seed=-1),
    }[change]
    assert parse_manifest(good.to_json()) == good
    with pytest.raises(ManifestError):
        parse_manifest(bad.to_json())


def test_models_are_found_here_then_at_peers_then_kept_and_last_at_the_hub(model, tmp_path, monkeypatch):
    missing = str(tmp_path / "here" / "model")
    config = EngineConfig(model=missing)
    peer = LocalPeer(model, finding.model_settings(config))
    assert finding.find_model(EngineConfig(model=str(model)), Some(peer)).received is None
    with pytest.raises(ModelNotHereError, match="does not exist"):
        finding.find_model(config, None)
    with pytest.raises(ModelNotHereError, match="does not exist"):
        finding.find_model(EngineConfig(model=missing, weights_from_peers=False), Some(peer))
    searched = []
    found = finding.find_model(config, Some(peer), searching=lambda: searched.append(1))
    assert found.received is not None
    assert searched == [1]
    kept = finding.find_model(config, Some())
    assert (kept.source, kept.received) == (found.source, None)


def test_the_default_model_is_the_published_file_or_not_taken(model, monkeypatch):
    config = EngineConfig()
    peer = LocalPeer(model, finding.model_settings(config))
    hub = ModelNotHereError("the hub was asked", "model")
    real = finding.model_of

    def resolve(config, progress, download=True):
        if download:
            raise hub
        return real(config, progress, download)

    monkeypatch.setattr(finding, "model_of", resolve)
    with pytest.raises(ModelNotHereError, match="the hub was asked"):
        finding.find_model(config, Some(peer))
