"""Python modules of the project's own C++, built where they are first used."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

from gpu_ops.build import build_library


def load_extension(source: Path) -> Any:
    """The module that ``source`` makes, by its name.

    Raises:
        OpBuildError: as ``build_library``.
        ImportError: it cannot be loaded.
    """
    path = str(build_library(source, for_python=True))
    loader = ExtensionFileLoader(source.stem, path)
    spec = importlib.util.spec_from_file_location(source.stem, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
