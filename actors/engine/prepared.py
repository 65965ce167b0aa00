"""What of an engine can be there before it has a name and a device: Paddle and, on the CPU, the ops and the mapped weights; for a
GPU Paddle's library, and the kept weights in the system's memory.

CUDA must not begin here: a process learns of its GPU later.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import SIMULATED, EngineConfig
from cluster.errors import BiremeError

if TYPE_CHECKING:
    from actors.models.decoder import Decoder

# What Paddle imports besides itself. Its own import asks the driver for GPUs, so on a GPU it comes when the device is known.
_IMPORTED_BY_PADDLE = (
    "numpy",
    "httpx",
    "setuptools",
    "PIL.Image",
    "networkx",
    "decorator",
    "google.protobuf",
    "opt_einsum",
)

_COMMAND_LINE = "httpx._main"
_PAGE = 4096

_model: tuple[EngineConfig, int, str, Decoder] | None = None


def prepare(config: EngineConfig, on_gpu: bool) -> None:
    """Prepare this process for an engine with these settings.

    Raises:
        ModelLoadError, ConfigError, OpBuildError: what the engine's start will say, too.
    """
    global _model
    if config.device == SIMULATED:
        return  # it needs no Paddle
    if on_gpu:
        _load_library_alone()
        _prefetch_weights(config)
        return
    import_paddle()
    from actors.device.cpu import CpuDevice
    from actors.device.host_tensor import host_view
    from actors.device.kv_cache_type import kv_cache_dtype
    from actors.engine.kept_weights import weights_identity
    from actors.engine.load_weights import load_kept_weights
    from actors.engine.memory_plan import expected_max_model_len
    from actors.model_files.config import load_model_config
    from actors.model_files.peers.find_model import find_here

    importlib.import_module("actors.engine.starting")
    source = find_here(config)
    if source is None:
        return  # the engine's start will bring the files here
    model_config = load_model_config(source)
    max_model_len = expected_max_model_len(config, model_config.max_position_embeddings)
    device = CpuDevice(kv_cache_dtype(config, is_gpu=False))
    model = load_kept_weights(config, source, model_config, max_model_len, device)
    if model is not None:
        for array in map(host_view, model.ready_tensors().values()):
            array.reshape(-1)[:: _PAGE // array.itemsize].sum()  # each page is mapped now, not in the first step
        _model = config, max_model_len, weights_identity(source, model_config), model


def take(config: EngineConfig, max_model_len: int, identity: str) -> Decoder | None:
    """The model that was prepared for exactly these settings and files (``weights_identity``), once; None if there is none."""
    global _model
    found, _model = _model, None
    return found[3] if found is not None and found[:3] == (config, max_model_len, identity) else None


def import_paddle() -> None:
    """Without the command line of a package that Paddle imports, which that one can do without, and a hundred modules of it."""
    is_here = _COMMAND_LINE in sys.modules
    not_there: Any = None
    if not is_here:
        sys.modules[_COMMAND_LINE] = not_there
    try:
        importlib.import_module("paddle")
    finally:
        if not is_here:
            del sys.modules[_COMMAND_LINE]


def _prefetch_weights(config: EngineConfig) -> None:
    from actors.engine.kept_weights import ready_weights
    from actors.model_files.config import load_model_config
    from actors.model_files.peers.find_model import find_here

    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    with contextlib.suppress(BiremeError, OSError):  # the engine's start will say what is wrong
        source = find_here(config)
        ready = source and ready_weights(config, source, load_model_config(source), dtype, on_gpu=True)
        file = ready.find() if ready else None
        if file is not None:
            file.prefetch()


def _load_library_alone() -> None:
    for name in _IMPORTED_BY_PADDLE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    spec = util.find_spec("paddle")
    if spec is None or spec.origin is None:
        return
    with contextlib.suppress(OSError):  # its import will say what is missing
        ctypes.CDLL(str(Path(spec.origin).parent / "base" / "libpaddle.so"))
