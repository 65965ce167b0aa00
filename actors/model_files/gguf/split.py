"""GGUF files that belong together: NAME-00001-of-00003.gguf and its brothers in one folder."""

from __future__ import annotations

import re
from pathlib import Path

from cluster.errors import ModelLoadError

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)


def is_gguf(path: Path) -> bool:
    """Whether the file's name says that it is one."""
    return path.suffix.lower() == ".gguf"


def model_name(path: Path) -> str:
    """What the model is called: the name of the file, without its number."""
    match = _PART.fullmatch(path.name)
    return match[1] if match else path.stem


def gguf_parts(path: Path) -> list[Path]:
    """Return all parts in order, whichever of them ``path`` is; one file if its name has no number.

    Raises:
        ModelLoadError: some are missing; the message names them.
    """
    match = _PART.fullmatch(path.name)
    count = int(match[3]) if match else 1
    if match is None or count < 2:
        return [path]
    there = {entry.name for entry in path.parent.iterdir()} if path.parent.is_dir() else set()
    parts = [path.with_name(f"{match[1]}-{i:05d}-of-{match[3]}{match[4]}") for i in range(1, count + 1)]
    missing = [part.name for part in parts if part.name not in there]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelLoadError(
            f"{path.parent} lacks {', '.join(missing[:3])}{more}: all {count} parts of a split model must lie side by side.",
            "model",
        )
    return parts
