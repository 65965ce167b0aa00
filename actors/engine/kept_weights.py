"""The file of a model's ready weights: which one it is, and its way into a device's memory and from there. Loads no Paddle."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import actors
from actors.model_files.ready_weights import ReadyArray, ReadyFile, ReadyWeights, read_at
from actors.model_files.source import ModelSource
from actors.model_files.weight_format import is_stored
from actors.model_files.weights import weights_fingerprint
from actors.models.config import ModelConfig
from cluster.config import EngineConfig
from cluster.errors import EngineDeadError
from cluster.process.cores import usable_cores
from cluster.process.exit_order import first_at_exit
from cluster.process.logs import log_fields
from gpu_ops.sources import sources_hash

if TYPE_CHECKING:
    import paddle

    from actors.device.cpu import CpuDevice
    from actors.models.decoder import Decoder

logger = logging.getLogger("bireme.runner")

# What turns a model's files into what the ops read.
_LOADING_CODE = ("model_files", "models", "layers")
# Set when Python ends: what still wrote would meet a Paddle that is half gone.
_ending = threading.Event()
_background: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
# After the engine is ready, its first requests have the processors and the disk.
PAUSE_S = 5.0
# A file of this size is checked before it is used, in a tenth of a second on one core; a larger one while its engine works.
CHECKED_FIRST_BYTES = 256 << 20
_MAX_CHECKING = 8
_LOW_PRIORITY = 10

# Called when the engine is ready, with what ends it where something is found out later.
WhenReady = Callable[[Callable[[BaseException], None]], None]


def ready_weights(
    config: EngineConfig, source: ModelSource, model_config: ModelConfig, dtype: str, on_gpu: bool
) -> ReadyWeights | None:
    """Where the weights of these settings are kept; None where drawing them again costs as little."""
    if source.kind == "dummy" and not on_gpu:
        return None
    key = [weights_identity(source, model_config), sources_hash(), _loading_code_hash(), dtype, str(on_gpu)]
    key.append(str(is_stored(config, source, on_gpu)))
    limit = config.ready_weights_gb
    return ReadyWeights("\0".join(key), None if limit is None else int(limit * 2**30))


def weights_identity(source: ModelSource, model_config: ModelConfig) -> str:
    """Equal for files of which the same model is made, wherever they lie."""
    return "\0".join([weights_fingerprint(source), repr(model_config)])


def tensors_of(file: ReadyFile, device: CpuDevice) -> dict[str, paddle.Tensor]:
    """The file's arrays as what the device computes with: mapped on the CPU, else copied from the file piece by piece.

    Raises:
        OSError, ValueError: the file is not what it was, or of another type.
    """
    if foreign := {array.dtype for array in file.arrays.values()} - {device.dtype, *device.other_dtypes}:
        raise ValueError(f"its numbers are {', '.join(foreign)}")
    if not device.is_gpu:
        return {name: device.mapped_tensor(array) for name, array in file.mapped().items()}
    from actors.device.large_copies import Upload

    descriptor = os.open(file.path, os.O_RDONLY)
    try:
        with Upload(device) as upload:
            tensors = {}
            for name, array in file.arrays.items():
                tensors[name] = device.empty(list(array.shape))
                upload.fill(tensors[name], partial(read_at, descriptor, array.offset))
            upload.finish()
    finally:
        os.close(descriptor)
    return tensors


def is_sound(file: ReadyFile, num_threads: int = min(_MAX_CHECKING, usable_cores())) -> bool:
    """Whether the file's arrays are what was written; what is not is removed, after a word in the log."""
    try:
        name = file.damaged_array(num_threads, _ending)
    except OSError as error:
        what = f"it cannot be read: {error}"
    else:
        if name is None:
            return True
        what = f"the bytes of {name} are not those that were written"
    logger.error("event=kept_weights_damaged path=%s: %s; the file is removed and made again", file.path, what)
    file.discard()
    return False


def check_later(file: ReadyFile) -> WhenReady:
    """What looks at all of a file that an engine computes with, without a core that the engine wants, and ends the engine where
    the file is damaged."""

    def check(fail: Callable[[BaseException], None]) -> None:
        with contextlib.suppress(OSError):  # of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)
        started = time.monotonic()
        if not is_sound(file, 1):
            fail(EngineDeadError(f"its kept weights are damaged: {file.path}, which is removed and will be made again"))
        elif not _ending.is_set():
            logger.info("event=weights_checked %s", log_fields(seconds=round(time.monotonic() - started, 1)))

    return lambda fail: _thread("weights-check", check, fail).start()


def keep(ready: ReadyWeights, model: Decoder) -> WhenReady:
    """What keeps the model's weights, when its engine is ready; it holds neither the caller up nor a model that nobody has."""
    from actors.device.large_copies import fetched, make_fetching_lane

    device, found = model.device, weakref.ref(model)
    arrays = {
        name: ReadyArray(str(tensor.dtype).removeprefix("paddle."), tuple(tensor.shape))
        for name, tensor in model.ready_tensors().items()
    }
    lane = make_fetching_lane(device)

    def pieces(name: str) -> Iterator[np.ndarray]:
        here = found()
        if here is None or _ending.is_set():
            raise OSError("the engine ended before its weights were written")
        return fetched(here.ready_tensors()[name], lane)

    def run() -> None:
        if _ending.wait(PAUSE_S):
            return
        lane.enter()
        started = time.monotonic()
        try:
            if ready.write(arrays, pieces):
                logger.info("event=weights_kept %s", log_fields(seconds=round(time.monotonic() - started, 1)))
        finally:
            lane.close()

    writer = _thread("ready-weights", run)
    return lambda fail: writer.start()


def _thread(name: str, run: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=run, args=arguments, name=name, daemon=True)
    _background.add(thread)
    # Before Paddle, which is loaded by now.
    first_at_exit(_end_threads)
    return thread


def _end_threads() -> None:
    _ending.set()
    for thread in list(_background):
        if thread.is_alive():
            thread.join()


def _loading_code_hash() -> str:
    digest = hashlib.sha256()
    folder = Path(actors.__path__[0])
    for room in _LOADING_CODE:
        for path in sorted((folder / room).rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
