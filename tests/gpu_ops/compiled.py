"""C++ that tests compile for themselves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_ops.build import compiler


def shared_libraries(builds: dict[Path, Sequence[str]], sources: Sequence[Path]) -> None:
    """Each library of ``sources``, compiled with its own flags; all that there is to compile, at once on all cores."""

    def compile_one(library: Path, source: Path) -> str:
        target = library.with_name(f"{library.stem}-{source.stem}.o")
        subprocess.run([compiler(), *builds[library], "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = {library: [pool.submit(compile_one, library, one) for one in sources] for library in builds}
        for library, parts in objects.items():
            linked = [compiler(), *builds[library], "-shared", *(part.result() for part in parts), "-o", str(library)]
            subprocess.run(linked, check=True)
