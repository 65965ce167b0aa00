"""The C++ sources of the ops: what lies in ``csrc``, and the headers that are generated from Python."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

from gpu_ops import kernel_limits
from gpu_ops.slots import slot_header

CSRC = Path(__file__).parent / "csrc"
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


@functools.cache
def generated_headers() -> dict[str, str]:
    """Path under the folder of generated headers, and text."""
    return {header.NAME: header.text() for header in (kernel_limits, slot_header)}


def write_generated_headers(folder: Path) -> list[str]:
    """Write them into ``folder``; returns the compiler's flags for them and for includes by path from ``csrc``."""
    for name, text in generated_headers().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [f"-I{CSRC}", f"-I{folder}"]


def _all() -> dict[str, bytes]:
    files = {str(path.relative_to(CSRC)): path.read_bytes() for path in CSRC.rglob("*") if path.is_file()}
    return files | {name: text.encode() for name, text in generated_headers().items()}


def sources_hash() -> str:
    """Hash of the ops' sources. The CPU kernels give the same bits on every processor, so it stands for their results."""
    key = hashlib.sha256()
    for name, content in sorted(_all().items()):
        key.update(name.encode() + b"\0" + content + b"\0")
    return key.hexdigest()


def with_includes(source: Path) -> str:
    """The text of a file of ``csrc`` and of every header of ours that it includes, directly or not."""
    texts: dict[str, str] = {}
    left = [str(source.relative_to(CSRC))]
    while left:
        name = left.pop()
        if name in texts or (text := _text(name)) is None:
            continue
        texts[name] = text
        left += _INCLUDE.findall(text)
    return "\0".join(f"{name}\0{text}" for name, text in sorted(texts.items()))


def _text(name: str) -> str | None:
    """A source or header of ours; None for one of somebody else."""
    if name in generated_headers():
        return generated_headers()[name]
    path = CSRC / name
    return path.read_text() if path.exists() else None
