"""Imports point one way, between folders (deployments -> actors -> gpu_ops, everything may use cluster) and between the rooms in
them; Paddle stays with the runner."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What no file of a package may import, wherever in the file the import stands.
FORBIDDEN = {
    "cluster": ("actors", "gpu_ops", "deployments", "paddle"),
    "gpu_ops": ("ray", "actors", "deployments"),
    "actors": ("deployments", "ray.serve"),
    "deployments": ("paddle",),
}

# Follows the runner as Paddle does, and one room of it knows the library.
GRAMMAR_LIBRARY = "llguidance"
GRAMMAR_ROOM = "actors/structured_output"

# For each folder, which other rooms of it a room may import; "" is what stands at the top of the folder.
ROOMS: dict[str, dict[str, set[str]]] = {
    "cluster": {
        "": {"terminal"},
        "bench": {"", "scaling"},
        "client": {""},
        "observability": set(),
        "terminal": {"", "bench", "client", "observability", "scaling"},
        "process": set(),
        "routing": set(),
        "scaling": {""},
    },
    "actors": {
        "": {"engine", "model_files", "requests"},
        "requests": set(),
        "engine": {"runner", "models", "model_files", "device", "scheduling", "structured_output", "text"},
        "runner": {"models", "device", "scheduling", "structured_output"},
        "models": {"layers", "device"},
        "layers": {"device"},
        "device": set(),
        "scheduling": set(),
        "model_files": {"models", "layers"},
        "structured_output": {"text"},
        "text": {"model_files"},
    },
    "deployments": {
        "": {
            "commands",
            "endpoints",
            "openai_api",
            "answers",
            "http",
            "routing",
            "replica",
            "spares",
            "admin",
            "autoscaling",
            "metrics",
            "start",
            "ray_private",
        },
        "autoscaling": {"start", "ray_private"},
        "commands": {
            "autoscaling",
            "openai_api",
            "http",
            "replica",
            "simulator",
            "start",
            "supervision",
            "ray_private",
        },
        "simulator": set(),
        "endpoints": {"openai_api", "answers", "http", "admin", "routing", "spares", "metrics", "ray_private"},
        "offline": {"openai_api", "answers", "routing", "metrics", "start"},
        "admin": {"routing", "replica", "spares", "ray_private"},
        "openai_api": {"answers", "http", "parsers", "routing", "metrics"},
        "answers": {"http", "routing", "native", "metrics", "start"},
        "http": {"native", "start"},
        "parsers": set(),
        "routing": {"replica", "native", "metrics", "ray_private"},
        "replica": {"native", "spares", "metrics", "start", "ray_private"},
        "native": set(),
        "spares": {"metrics", "start", "ray_private"},
        "metrics": set(),
        "start": {"native", "ray_private"},
        "supervision": {"ray_private"},
        "ray_private": set(),
    },
    "deployments/openai_api": {
        "": {"answers", "requests"},
        "answers": {"requests"},
        "requests": set(),
    },
    "deployments/parsers": {
        "": {"tools", "scanning"},
        "tools": {"scanning"},
        "scanning": set(),
    },
    "deployments/start": {
        "": {"run_files"},
        "run_files": set(),
    },
    "actors/engine": {
        "": {"stats"},
        "stats": set(),
    },
}

# How many modules a room may have before it wants a room of its own.
FLOOR = 15

# What processes without a runner load, and the plain-Python half of the engine.
WITHOUT_PADDLE = (
    "actors.engine.engine",
    "actors.engine.load_simulated",
    "actors.engine.loop",
    "actors.engine.simulated",
    "actors.engine.starting",
    "actors.scheduling.kv_cache",
    "actors.model_files.source",
    "actors.scheduling.scheduler",
    "actors.text.tokenizer",
    "cluster.bench.processes",
    "cluster.cli",
    "cluster.client",
    "deployments.cli",
    "deployments.replica.engine_replica",
    "deployments.ingress",
    "deployments.llm",
    "deployments.simulator.study",
    "deployments.start.prepare",
    "gpu_ops.build",
    "bireme",
    "deployments.offline.llm",
)

# `bireme serve` sets what Ray and Ray Serve read from the environment when they are imported: where they listen, for one.
WITHOUT_RAY = ("deployments.cli", "bireme")


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, inside functions too; ``from a import b`` gives a and a.b."""
    package = path.relative_to(ROOT).parent.parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*parents, *filter(None, [node.module])))
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            names.update(
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )
    return names


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports_paddle(path: Path) -> bool:
    return any(is_within(module, "paddle") for module in imported_modules(path))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    files = python_files(package)
    assert files, f"{package}/ has no Python files"
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in sorted(imported_modules(path))
        if any(is_within(module, forbidden) for forbidden in FORBIDDEN[package])
    ]
    assert not wrong, "\n".join(wrong)


def test_one_room_knows_the_grammar_library() -> None:
    users = {
        path.parent.relative_to(ROOT).as_posix()
        for package in FORBIDDEN
        for path in python_files(package)
        if any(is_within(module, GRAMMAR_LIBRARY) for module in imported_modules(path))
    }
    assert users == {GRAMMAR_ROOM}


def room_of(module: str, folder: str) -> str | None:
    """The room of a module in a folder, "" for what stands at its top, None if it is not in it; an unknown room stands for
    itself, so that nobody may import it unseen."""
    package = folder.replace("/", ".")
    if module == package or not is_within(module, package):
        return None
    name = module.removeprefix(f"{package}.").split(".")[0]
    return name if (ROOT / folder / name).is_dir() else ""


@pytest.mark.parametrize("folder", ROOMS)
def test_imports_between_rooms_point_one_way(folder: str) -> None:
    wrong, seen = [], set()
    for path in python_files(folder):
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts), folder)
        assert room is not None
        for module in imported_modules(path):
            other = room_of(module, folder)
            if other is None or other == room:
                continue
            seen.add((room, other))
            if other not in ROOMS[folder][room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(sorted(wrong))
    unused = {(room, other) for room, others in ROOMS[folder].items() for other in others} - seen
    assert not unused, f"nobody needs these arrows any more: {sorted(unused)}"


@pytest.mark.parametrize("package", [*FORBIDDEN, "tests/gpu", "benchmarks"])
def test_a_room_is_seen_at_one_glance(package: str) -> None:
    rooms: dict[Path, int] = {}
    for path in python_files(package):
        rooms[path.parent] = rooms.get(path.parent, 0) + (path.name != "__init__.py")
    crowded = {str(room.relative_to(ROOT)): number for room, number in rooms.items() if number > FLOOR}
    assert not crowded, f"more than {FLOOR} modules on one floor: {crowded}"


def test_deployments_use_no_op_that_imports_paddle() -> None:
    with_paddle = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in python_files("gpu_ops")
        if imports_paddle(path)
    }
    assert with_paddle, "no module of gpu_ops imports paddle: the search is broken"
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in python_files("deployments")
        for module in sorted(imported_modules(path) & with_paddle)
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_include_no_paddle_header() -> None:
    kernels = [path for path in (ROOT / "gpu_ops" / "csrc" / "kernels").rglob("*") if path.is_file()]
    assert kernels
    wrong = [str(path.relative_to(ROOT)) for path in kernels if '#include "paddle/' in path.read_text()]
    assert not wrong, f"kernels with Paddle headers: {wrong}"


@pytest.mark.parametrize("module", WITHOUT_PADDLE)
def test_module_loads_without_paddle(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        f"unwanted = {('paddle', GRAMMAR_LIBRARY, *(['ray'] if module in WITHOUT_RAY or is_within(module, 'cluster') else []))}\n"
        "found = sorted(name for name in sys.modules if name.split('.')[0] in unwanted)\n"
        "sys.exit('imported ' + ', '.join(found[:5]) if found else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_the_search_sees_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "actors" / "models" / "llama.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import a.b as c\nfrom d import e\nfrom . import f\nfrom ..g import h\n"
        "def later():\n    import i\n    import importlib\n    importlib.import_module('j.k')\n"
    )
    expected = {
        "a.b",
        "d",
        "d.e",
        "actors.models",
        "actors.models.f",
        "actors.g",
        "actors.g.h",
        "i",
        "importlib",
        "j.k",
    }
    assert imported_modules(path) == expected
