"""Models named by a Hugging Face id: the cached snapshot if it is complete, else a download."""

from __future__ import annotations

import json
import re
from pathlib import Path

from actors.model_files.download.folder_growth import FolderGrowth
from cluster.errors import ModelLoadError, ModelNotHereError
from cluster.process.cache import Progress

WANTED = ["*.json", "*.safetensors", "*.jinja"]
UNWANTED = ["consolidated*", "original/*", "onnx/*"]
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(model: str) -> bool:
    """Whether ``model`` has the form owner/name."""
    return _ID.fullmatch(model) is not None


def ensure_snapshot(repo: str, need_weights: bool, progress: Progress | None = None, download: bool = True) -> Path:
    """Return the local snapshot folder of ``repo``, downloading what is missing.

    Args:
        need_weights: False fetches configuration and tokenizer only.
        download: False looks into the cache only.
    Raises:
        ModelNotHereError: not cached, and not to be downloaded or not reachable.
        ModelLoadError: unknown, gated, or without safetensors weights.
    """
    import huggingface_hub
    from huggingface_hub import constants

    patterns = WANTED if need_weights else [pattern for pattern in WANTED if pattern != "*.safetensors"]
    try:
        snapshot = Path(
            huggingface_hub.snapshot_download(
                repo, allow_patterns=patterns, ignore_patterns=UNWANTED, local_files_only=True
            )
        )
        if is_complete(snapshot, need_weights):
            return snapshot
    except (OSError, ValueError):
        pass  # not cached yet
    if not download:
        raise ModelNotHereError(f"model {repo} is not in the Hugging Face cache.", "model")
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    try:
        total = _download_bytes(repo, patterns) if progress else 0
        with FolderGrowth(blobs, f"downloading {repo}", total, progress):
            snapshot = Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns, ignore_patterns=UNWANTED))
    except Exception as error:  # the hub client raises its own, requests' and httpx's errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotHereError(
            f"model {repo} is not in the Hugging Face cache and could not be downloaded ({type(error).__name__}: {reason}). "
            "Check the name and the network, set HF_TOKEN if the model is gated, or set model to a local directory.",
            "model",
        ) from error
    if not is_complete(snapshot, need_weights):
        raise ModelLoadError(
            f"Hugging Face repository {repo} has no config.json with safetensors weights. Choose a repository "
            "that has them, or set model to a local GGUF file.",
            "model",
        )
    return snapshot


def is_complete(folder: Path, need_weights: bool) -> bool:
    """Whether ``folder`` has config.json and, if needed, every weight file that it speaks of."""
    if not (folder / "config.json").is_file():
        return False
    if not need_weights:
        return True
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return False
        return all((folder / name).is_file() for name in files)
    return any(folder.glob("*.safetensors"))


def _download_bytes(repo: str, patterns: list[str]) -> int:
    """Size of the files that a download will fetch, for the progress display."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    sizes = {file.rfilename: file.size or 0 for file in HfApi().model_info(repo, files_metadata=True).siblings or []}
    return sum(sizes[name] for name in filter_repo_objects(sizes, allow_patterns=patterns, ignore_patterns=UNWANTED))
