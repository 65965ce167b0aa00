"""What the cache folder and the Hugging Face cache hold: models, and weights as the matmuls read them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from actors.model_files.download.folder_growth import folder_bytes
from cluster.errors import BiremeError
from cluster.process.cache import cache_dir

READY_WEIGHTS = "ready-weights"
_HUB_PREFIX = "models--"


class KeptModel(NamedTuple):
    """Something that can be removed and fetched or made again.

    Attributes:
        name: as ``model`` in the settings; READY_WEIGHTS for the kept weights of all models.
        root: the cache that ``path`` lies in.
    """

    name: str
    num_bytes: int
    path: Path
    root: Path


def kept_models() -> list[KeptModel]:
    """Everything that is kept, sorted by name; the weights that are ready to be mapped last."""
    found = []
    models = cache_dir() / "models"
    for folder in _folders(models):
        found.append(KeptModel(folder.name, folder_bytes(folder), folder, models))
    hub = _hub_cache()
    for folder in _folders(hub):
        if folder.name.startswith(_HUB_PREFIX):
            name = folder.name.removeprefix(_HUB_PREFIX).replace("--", "/", 1)
            found.append(KeptModel(name, folder_bytes(folder), folder, hub))
    found.sort()
    ready = cache_dir() / "ready_weights"
    if ready.is_dir():
        found.append(KeptModel(READY_WEIGHTS, folder_bytes(ready), ready, cache_dir()))
    return found


def remove(model: KeptModel) -> None:
    """Remove the folder of ``model``.

    Raises:
        BiremeError: it is a link or lies elsewhere than right below its cache, or cannot be removed.
    """
    path = model.path
    if path.is_symlink() or path.resolve().parent != model.root.resolve():
        raise BiremeError(f"{path} is a link out of the cache {model.root}: remove it by hand if it is not wanted")
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise BiremeError(f"{error.filename or path} cannot be removed: {error.strerror}") from None


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folders(parent: Path) -> list[Path]:
    """Folders and links to such right below ``parent``."""
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except OSError:
        return []
