"""JSON files of a model directory, and the special tokens that they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.errors import ModelLoadError


def read_json(path: Path, param: str = "model") -> dict[str, Any]:
    """Return the object in a JSON file, or raise ModelLoadError about the setting ``param``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(
            f"cannot read {path}: {error.strerror}. A model directory needs this file.", param
        ) from error
    except ValueError as error:
        raise ModelLoadError(f"{path} is not valid JSON ({error}): download or copy it again.", param) from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} holds no JSON object: download or copy it again.", param)
    return content


def read_optional_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} where there is none."""
    return read_json(path) if path.is_file() else {}


def special_tokens(folder: Path) -> dict[str, str]:
    """Return {bos_token, eos_token, ...: text}: tokenizer_config.json goes before special_tokens_map.json."""
    files = (read_optional_json(folder / name) for name in ("special_tokens_map.json", "tokenizer_config.json"))
    named = {name: _text(value) for file in files for name, value in file.items() if name.endswith("_token")}
    return {name: text for name, text in named.items() if text}


def _text(value: Any) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
