"""Header of a GGUF file: metadata and the table of tensors, parsed once a process without reading tensor data.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The parser is our own because the ``gguf`` package makes
several NumPy objects for every vocabulary entry, which takes seconds where this takes a tenth of one.
"""

from __future__ import annotations

import functools
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.model_files.gguf.split import gguf_parts
from cluster.errors import ModelLoadError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_SUPPORTED_VERSIONS = (2, 3)

# ggml type id -> (name, elements of a block, bytes of a block): the types that can be turned into float32.
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One entry of the tensor table.

    Attributes:
        type_id: ggml's number of the storage type; a key of TENSOR_TYPES.
        shape: in NumPy order (rows first), the reverse of what the file stores.
        offset: of the first byte, from the beginning of the file.
        num_bytes: stored size.
        path: of the file that has it.
    """

    name: str
    type_id: int
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    path: Path


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A parsed header; ``metadata`` holds Python scalars, strings and lists."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    @property
    def architecture(self) -> str:
        """Value of general.architecture."""
        return str(self.metadata.get("general.architecture", ""))


def read_gguf(path: Path) -> GGUFFile:
    """Parse the header of ``path`` and of the files that it is a model with; a second call for unchanged files is free.

    Raises:
        ModelLoadError: not a GGUF file, an unsupported version or tensor type, damaged, shorter than its tensors, or parts of a
            model that do not belong together.
    """
    first, *others = map(_read_part, gguf_parts(path))
    count = first.metadata.get("split.count", 1)
    if count != 1 + len(others):
        raise ModelLoadError(
            f"{first.path} is one of {count} parts: name them as they came, NAME-00001-of-{count:05d}.gguf and so on.",
            "model",
        )
    tensors = dict(first.tensors)
    for i, part in enumerate(others, 1):
        numbers = [part.metadata.get(f"split.{key}") for key in ("no", "count")]
        if numbers != [i, count] or tensors.keys() & part.tensors.keys():
            raise ModelLoadError(
                f"{part.path} is no part {i + 1} of {count} of the model that {first.path.name} begins: copy it again.",
                "model",
            )
        tensors.update(part.tensors)
    named = first.metadata.get("split.tensors.count", len(tensors))
    if named != len(tensors):
        raise ModelLoadError(
            f"{first.path}: its parts have {len(tensors)} tensors, not {named}: copy them again.", "model"
        )
    return first if not others else GGUFFile(first.path, first.metadata, tensors)


def _read_part(path: Path) -> GGUFFile:
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror}.", "model") from error
    return _read(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read(path: Path, size: int, mtime_ns: int) -> GGUFFile:
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelLoadError(
                    f"{path} is not a GGUF file (it does not begin with GGUF): download it again.", "model"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(data, size).parse(path)
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise ModelLoadError(f"{path} is damaged or cut off ({error}): download or copy it again.", "model") from error
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror}.", "model") from error


def _type_name(type_id: int) -> str:
    from gguf.constants import GGMLQuantizationType

    try:
        return GGMLQuantizationType(type_id).name
    except ValueError:  # of a newer format
        return str(type_id)


class _Cursor:
    """Reads forward through the header; a size that cannot be true raises ValueError before it is used."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._at = data, size, 4

    def parse(self, path: Path) -> GGUFFile:
        version = self._number("<I")
        if version not in _SUPPORTED_VERSIONS:
            raise ModelLoadError(
                f"{path} has GGUF version {version}; supported: {', '.join(map(str, _SUPPORTED_VERSIONS))} "
                "(little-endian). Convert it again with a current tool.",
                "model",
            )
        num_tensors, num_keys = self._count(24), self._count(12)
        metadata = {}
        for _ in range(num_keys):
            key = self._string()
            metadata[key] = self._value(self._number("<I"))
        entries = [self._tensor_entry(path) for _ in range(num_tensors)]
        alignment = int(metadata.get("general.alignment", 32))
        if alignment <= 0:
            raise ValueError(f"general.alignment is {alignment}")
        data_start = -(-self._at // alignment) * alignment
        tensors = {}
        for name, type_id, shape, offset in entries:
            type_name, block, block_bytes = TENSOR_TYPES[type_id]
            elements = int(np.prod(shape, dtype=object))
            if shape[-1] % block:
                raise ValueError(f"rows of tensor {name} do not fill whole {type_name} blocks")
            tensor = GGUFTensor(name, type_id, shape, data_start + offset, elements // block * block_bytes, path)
            if tensor.offset + tensor.num_bytes > self._size:
                raise ValueError(
                    f"tensor {name} ends at byte {tensor.offset + tensor.num_bytes}, the file at {self._size}"
                )
            tensors[name] = tensor
        return GGUFFile(path, metadata, tensors)

    def _number(self, fmt: str) -> Any:
        value = struct.unpack_from(fmt, self._data, self._at)[0]
        self._at += struct.calcsize(fmt)
        return value

    def _count(self, min_bytes_each: int) -> int:
        count = self._number("<Q")
        if count * min_bytes_each > self._size - self._at:
            raise ValueError(f"a count of {count} at byte {self._at - 8} does not fit into the file")
        return count

    def _string(self) -> str:
        length = self._count(1)
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8")

    def _value(self, type_id: int) -> Any:
        if type_id in _SCALARS:
            return self._number(_SCALARS[type_id])
        if type_id == _STRING:
            return self._string()
        if type_id == _ARRAY:
            return self._array()
        raise ValueError(f"unknown metadata type {type_id}")

    def _array(self) -> list[Any]:
        element = self._number("<I")
        if element in _SCALARS:
            dtype = np.dtype(_SCALARS[element])
            count = self._count(dtype.itemsize)
            values = np.frombuffer(self._data, dtype, count, self._at).tolist()
            self._at += count * dtype.itemsize
            return values
        if element == _STRING:
            return self._strings(self._count(8))
        return [self._value(element) for _ in range(self._count(1))]

    def _strings(self, count: int) -> list[str]:
        # Vocabularies are lists of 10^5 strings, so this loop is kept free of method calls.
        data, at, size, read_length = self._data, self._at, self._size, struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):
            start = at + 8
            at = start + read_length(data, at)[0]
            if at > size:
                raise ValueError(f"a string at byte {start} runs past the end")
            strings.append(data[start:at].decode("utf-8"))
        self._at = at
        return strings

    def _tensor_entry(self, path: Path) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string()
        num_dims = self._number("<I")
        if not 1 <= num_dims <= 4:
            raise ValueError(f"tensor {name} has {num_dims} dimensions")
        dims = [self._number("<Q") for _ in range(num_dims)]
        type_id = self._number("<I")
        offset = self._number("<Q")
        if type_id not in TENSOR_TYPES:
            known = ", ".join(type_name for type_name, _, _ in TENSOR_TYPES.values())
            raise ModelLoadError(
                f"{path}: tensor {name} has ggml type {_type_name(type_id)}, which is not supported; supported: {known}. "
                "Use a file with another quantisation.",
                "model",
            )
        return name, type_id, tuple(reversed(dims)), offset
