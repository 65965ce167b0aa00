"""Tensors of safetensors files as float32, read without a framework.

Format: eight bytes of header length, a JSON header, then the data; https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.errors import ModelLoadError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """Where one tensor lies: ``offset`` counts from the beginning of ``path``; ``dtype`` is a key of ITEM_BYTES."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """Return the tensor as float32 with ``shape``."""
        count = math.prod(self.shape)
        if self.dtype == "F32":
            values = np.fromfile(self.path, "<f4", count, offset=self.offset)
        elif self.dtype == "F16":
            values = np.fromfile(self.path, "<f2", count, offset=self.offset).astype(np.float32)
        else:  # a bfloat16 is the upper half of a float32
            bits = np.fromfile(self.path, "<u2", count, offset=self.offset)
            values = (bits.astype(np.uint32) << 16).view(np.float32)
        return values.reshape(self.shape)


def read_index(index: Path) -> dict[str, str]:
    """Return {tensor name: file name} of a sharded model.

    Raises:
        ModelLoadError: damaged, or a file name that leaves the directory.
    """
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{index} is damaged ({error}): download or copy it again.", "model") from error
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelLoadError(f"{index} names the file {name!r}; allowed: files in the same directory.", "model")
    return weight_map


def read_header(path: Path) -> dict[str, SafeTensor]:
    """Return the table of tensors of one file, checked against the file's size.

    Raises:
        ModelLoadError: damaged, cut off, or a dtype that is not supported.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _entry(path, name, entry, 8 + length, size) for name, entry in header.items()}
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror}.", "model") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{path} is damaged or cut off ({error}): download or copy it again.", "model") from error


def _entry(path: Path, name: str, entry: dict, data_start: int, size: int) -> SafeTensor:
    dtype, shape, (begin, end) = entry["dtype"], tuple(int(n) for n in entry["shape"]), entry["data_offsets"]
    item_bytes = {**ITEM_BYTES, "U16": 2}.get(dtype)
    if item_bytes is None:
        # Refused only when asked for: files may hold integer buffers that no model needs.
        return SafeTensor(path, dtype, shape, data_start + begin)
    if end - begin != math.prod(shape) * item_bytes or begin < 0:
        raise ValueError(f"tensor {name} has {end - begin} bytes for shape {list(shape)} of {dtype}")
    if data_start + end > size:
        raise ValueError(f"tensor {name} ends at byte {data_start + end}, the file at {size}")
    return SafeTensor(path, dtype, shape, data_start + begin)
