"""Write requirements.lock: every package that an environment gets, at the version pip resolves for each Python.

    python scripts/lock.py python3.10 python3.11 python3.12

needs one interpreter (with pip >= 23) of every supported version. A package whose version differs between them, or
that only some of them need, gets an environment marker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HEADER = "# Written by scripts/lock.py from pyproject.toml (extras cpu and dev) for every supported Python.\n"
# pip and setuptools install the rest, so they are pinned as well.
REQUIREMENTS = [f"{ROOT}[cpu,dev]", "pip>=24.1", "setuptools>=77"]


def resolve(python: str) -> tuple[str, dict[str, str]]:
    """Return the interpreter's version ("3.11") and {package: version} of everything pip would install for it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        subprocess.run(
            [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--dry-run",
                "--ignore-installed",
                "--report",
                str(report),
                *REQUIREMENTS,
            ],
            check=True,
        )
        resolved = json.loads(report.read_text())
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in resolved["install"]}
    del found["bireme"]
    return ".".join(resolved["environment"]["python_version"].split(".")[:2]), found


def lock_lines(resolved: dict[str, dict[str, str]]) -> list[str]:
    """Requirement lines for {python version: {package: version}}, sorted by package."""
    wanted: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for python, packages in sorted(resolved.items(), key=lambda item: int(item[0].split(".")[1])):
        for name, version in packages.items():
            wanted[name][version].append(python)
    lines = []
    for name in sorted(wanted, key=str.lower):
        for version, pythons in wanted[name].items():
            marker = " or ".join(f'python_version == "{python}"' for python in pythons)
            lines.append(f"{name}=={version}" + ("" if len(pythons) == len(resolved) else f" ; {marker}"))
    return lines


def main() -> None:
    pythons = sys.argv[1:]
    if not pythons:
        sys.exit(__doc__)
    resolved = dict(map(resolve, pythons))
    LOCK.write_text(HEADER + "\n".join(lock_lines(resolved)) + "\n")
    counts = [f"{len(found)} packages for Python {python}" for python, found in resolved.items()]
    print(f"{LOCK.name}: {', '.join(counts)}")


if __name__ == "__main__":
    main()
