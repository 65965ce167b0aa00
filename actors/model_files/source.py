"""From the ``model`` setting to files on this machine: which file or folder holds weights, configuration and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors.model_files.download.default_model import ensure_default_model
from actors.model_files.download.hub import ensure_snapshot, is_hub_id
from actors.model_files.gguf.split import gguf_parts, is_gguf, model_name
from cluster.config import DEFAULT_MODEL, EngineConfig
from cluster.errors import ModelLoadError, ModelNotHereError
from cluster.process.cache import Progress
from cluster.wording import nearest

LOAD_FORMATS = ("auto", "dummy")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model lies.

    Attributes:
        kind: 'gguf' (one file), 'safetensors' (a directory), or 'dummy' (random weights for the configuration at ``path``).
        path: the GGUF file (of a split model the first), or the directory with config.json.
        tokenizer: GGUF file, directory or tokenizer.json that the tokenizer is read from; None if the model has none.
        name: the name under which clients ask for the model unless they are told another.
        seed: of dummy weights; 0 otherwise.
    """

    kind: Literal["gguf", "safetensors", "dummy"]
    path: Path
    tokenizer: Path | None
    name: str
    seed: int = 0

    @property
    def is_gguf(self) -> bool:
        """Whether configuration (and, unless dummy, weights) come from a GGUF file."""
        return is_gguf(self.path)

    def weight_files(self) -> list[Path]:
        """Return the files that hold the weights, in a fixed order; none for dummy weights."""
        if self.kind == "dummy":
            return []
        return gguf_parts(self.path) if self.kind == "gguf" else safetensors_files(self.path)


def model_of(config: EngineConfig, progress: Progress | None = None, download: bool = True) -> ModelSource:
    """``resolve_model`` of an engine's settings."""
    return resolve_model(
        config.model,
        load_format=config.load_format,
        tokenizer=config.tokenizer,
        progress=progress,
        seed=config.dummy_seed,
        download=download,
    )


def resolve_model(
    model: str,
    *,
    load_format: str = "auto",
    tokenizer: str | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    download: bool = True,
) -> ModelSource:
    """Find the model's files, downloading them if ``model`` is the default's name or a Hugging Face id that is not cached.

    Args:
        model: the default's name, a GGUF file, a directory (safetensors with config.json, or one GGUF file), a config.json
            (dummy weights), or a Hugging Face id.
        load_format: 'auto', or 'dummy' for random weights in the shape of the model's configuration.
        tokenizer: directory, tokenizer.json, GGUF file or the default model's name, to use instead of the model's own.
        progress: called as ``progress(what, bytes done, bytes in all)`` during downloads.
        seed: of dummy weights.
        download: False looks on this machine only.
    Raises:
        ModelNotHereError: this machine has no such files, and they are not to be downloaded or cannot be.
        ModelLoadError: with one message that says what is wrong and what to do.
    """
    if load_format not in LOAD_FORMATS:
        raise ModelLoadError(f"load_format is {load_format!r}; allowed: {', '.join(LOAD_FORMATS)}", "load_format")
    dummy = load_format == "dummy"
    kind: Literal["gguf", "safetensors"]
    own_tokenizer: Path | None
    path, name = _locate(model, dummy, progress, download)
    if is_gguf(path):
        kind, own_tokenizer = "gguf", path
    else:
        kind, own_tokenizer = "safetensors", path if (path / "tokenizer.json").is_file() else None
        if not dummy:
            safetensors_files(path)
    chosen = _tokenizer_path(tokenizer, progress, download) if tokenizer else own_tokenizer
    return ModelSource("dummy" if dummy else kind, path, chosen, name, seed if dummy else 0)


def safetensors_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model directory, sorted; a sharded model's index decides which belong to it.

    Raises:
        ModelLoadError: there are none, or one that the index names is missing.
    """
    from actors.model_files.formats.safetensors import read_index

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(read_index(index).values()))]
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelLoadError(
            f"{folder} has a config.json but no *.safetensors file: add the weights, or set load_format to "
            "dummy for random ones (other weight formats, e.g. pytorch_model.bin, are not read).",
            "model",
        )
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelLoadError(
            f"{folder} lacks {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}, named by "
            f"{index.name}: copy the missing shards there.",
            "model",
        )
    return files


def _locate(model: str, dummy: bool, progress: Progress | None, download: bool) -> tuple[Path, str]:
    """Return (GGUF file or directory with config.json, name for clients)."""
    if model == DEFAULT_MODEL:
        return ensure_default_model(progress, download), DEFAULT_MODEL
    path = Path(model).expanduser()
    if model and path.is_file():
        return _from_file(path.resolve(), dummy)
    if model and path.is_dir():
        return _from_directory(path.resolve())
    looks_local = model.startswith((".", "/", "~")) or path.suffix.lower() in (".gguf", ".json", ".safetensors")
    if not looks_local and is_hub_id(model):
        return ensure_snapshot(model, not dummy, progress, download), model
    if looks_local or "/" in model:
        raise ModelNotHereError(
            f"model {model} does not exist: give the path of a GGUF file or of a directory with config.json "
            "and safetensors files.",
            "model",
        )
    near = nearest(model, [DEFAULT_MODEL])
    meant = f"; did you mean {near}?" if near else ""
    raise ModelLoadError(
        f"model {model!r} is unknown{meant}; allowed: {DEFAULT_MODEL}, a GGUF file, a directory, or a Hugging Face id "
        "(owner/name).",
        "model",
    )


def _from_file(path: Path, dummy: bool) -> tuple[Path, str]:
    if is_gguf(path):
        return gguf_parts(path)[0], model_name(path)
    if path.name == "config.json" and (dummy or any(path.parent.glob("*.safetensors"))):
        return path.parent, path.parent.name
    if path.name == "config.json":
        raise ModelLoadError(f"{path} has no weights beside it: set load_format to dummy for random ones.", "model")
    raise ModelLoadError(
        f"{path} is no model: allowed are a file that ends in .gguf, a config.json (load_format dummy), or a "
        "directory.",
        "model",
    )


def _from_directory(folder: Path) -> tuple[Path, str]:
    if (folder / "config.json").is_file():
        return folder, folder.name
    gguf_files = sorted({gguf_parts(path)[0] for path in folder.iterdir() if is_gguf(path)})
    if len(gguf_files) == 1:
        return gguf_files[0], model_name(gguf_files[0])
    if gguf_files:
        raise ModelLoadError(
            f"{folder} holds {len(gguf_files)} GGUF models: set model to one of them, e.g. {gguf_files[0]}.", "model"
        )
    raise ModelLoadError(
        f"{folder} holds neither config.json nor a GGUF file: a model directory needs config.json, "
        "tokenizer.json and *.safetensors, or one .gguf.",
        "model",
    )


def _tokenizer_path(tokenizer: str, progress: Progress | None, download: bool) -> Path:
    if tokenizer == DEFAULT_MODEL:
        return ensure_default_model(progress, download)
    path = Path(tokenizer).expanduser()
    is_tokenizer_file = path.is_file() and path.suffix.lower() in (".json", ".gguf")
    if is_tokenizer_file or (path / "tokenizer.json").is_file():
        return gguf_parts(path.resolve())[0]
    raise (ModelLoadError if path.exists() else ModelNotHereError)(
        f"tokenizer {tokenizer} is no tokenizer: give a tokenizer.json, a directory that holds one, a GGUF file, or "
        f"{DEFAULT_MODEL}.",
        "tokenizer",
    )
