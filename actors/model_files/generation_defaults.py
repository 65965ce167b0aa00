"""Which sampling parameters a model's files recommend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.model_files.gguf.file import read_gguf
from actors.model_files.json_file import read_json, read_optional_json
from actors.model_files.source import ModelSource
from cluster.config import DEFAULT_MODEL
from cluster.errors import ModelLoadError

# Name in a request to names in generation_config.json and in GGUF metadata.
_NAMES = {
    "temperature": ("temperature", "general.sampling.temp"),
    "top_p": ("top_p", "general.sampling.top_p"),
    "top_k": ("top_k", "general.sampling.top_k"),
    "min_p": ("min_p", "general.sampling.min_p"),
    "repetition_penalty": ("repetition_penalty", "general.sampling.penalty_repeat"),
    "max_tokens": ("max_new_tokens", ""),
}
# What its authors recommend; the file names nothing.
_OF_DEFAULT_MODEL = {"temperature": 0.2, "top_p": 0.9}


def recommended_sampling(setting: str, model: str, source: ModelSource) -> tuple[dict[str, Any], str]:
    """Return ({name in a request: value}, where it stands), unchecked; nothing where nothing is recommended.

    Args:
        setting: generation_config of the application: auto, none, or a directory.
        model: the setting of that name.
    Raises:
        ModelLoadError: the directory has no generation_config.json, or the file is damaged.
    """
    if setting == "none":
        return {}, "none"
    if setting != "auto":
        file = Path(setting).expanduser() / "generation_config.json"
        if not file.is_file():
            raise ModelLoadError(
                f"generation_config is {setting!r}; allowed: auto, none, or a directory with a generation_config.json.",
                "generation_config",
            )
        return _named(read_json(file, "generation_config"), 0), str(file)
    if model == DEFAULT_MODEL:
        return dict(_OF_DEFAULT_MODEL), DEFAULT_MODEL
    if source.is_gguf:
        # Float32 next to decimal numbers.
        values = _named(read_gguf(source.path).metadata, 1)
        return {n: float(f"{v:.6g}") if isinstance(v, float) else v for n, v in values.items()}, str(source.path)
    file = source.path / "generation_config.json"
    return _named(read_optional_json(file), 0), str(file)


def _named(content: dict[str, Any], column: int) -> dict[str, Any]:
    named = {name: content.get(keys[column]) for name, keys in _NAMES.items()}
    return {name: value for name, value in named.items() if value is not None}
