"""Private names of Ray and Ray Serve are used in the room ``deployments/ray_private`` alone.

Tests and benchmarks are not looked into: they see into Ray's processes on purpose, and nobody is served by them.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.ray_private import serve
from deployments.routing.router.engine_router import EngineRouter
from deployments.routing.router.ingress_router import IngressRouter
from tests.test_imports import ROOT, imported_modules, is_within, python_files

PACKAGES = ("cluster", "actors", "gpu_ops", "deployments")
HOME = ROOT / "deployments" / "ray_private"

# Private names of others that are looked up or called, by what they belong to.
OF_OTHERS = {
    "_replace": "named tuples; public in spite of its name",
    "_asdict": "named tuples; public in spite of its name",
    "_exit": "os; public in spite of its name",
    "_C_ops": "paddle: custom ops are called there",
    "_run_custom_op": "paddle: custom ops are called there",
}


def is_private(name: str | None) -> bool:
    return name is not None and name.startswith("_") and not name.endswith("__")


def private_uses(path: Path) -> Iterator[str]:
    """Private modules and names of Ray that a file imports, and private attributes and options of any object but its own."""
    for module in imported_modules(path):
        if is_within(module, "ray") and any(map(is_private, module.split("."))):
            yield module
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls") and node.attr not in OF_OTHERS:
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.keyword) and is_private(node.arg):
            yield f"{node.arg}="
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(name.value):
                yield ast.unparse(node)


def test_private_names_of_ray_are_used_in_one_room_alone():
    wrong = [
        f"{path.relative_to(ROOT)}: {use}"
        for package in PACKAGES
        for path in python_files(package)
        if path.parent != HOME
        for use in private_uses(path)
    ]
    assert not wrong, "\n".join(wrong)
    assert {use.split(".")[0] for use in private_uses(HOME / "serve.py")} >= {"ray", "worker", "super()"}


def test_the_search_sees_every_form_of_use(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_imports.ROOT", tmp_path)
    path = tmp_path / "deployments" / "some.py"
    path.parent.mkdir()
    path.write_text(
        "import ray._private.worker\nfrom ray import _raylet\nfrom ray.serve.context import _client\n"
        "import ray\nray._worker\nhandle.options(_by=1)\ngetattr(actor, '_replica')\nself._mine\ntuple._replace(a=1)\n"
    )
    assert set(private_uses(path)) == {
        "ray._private.worker",
        "ray._raylet",
        "ray.serve.context._client",
        "ray._worker",
        "_by=",
        "getattr(actor, '_replica')",
    }


def private_names(source: str) -> set[str]:
    """Names of private methods that a class has, and of private attributes that it uses of itself."""
    nodes = list(ast.walk(ast.parse(source)))
    methods = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"}
    return set(filter(is_private, methods | attributes))


@pytest.mark.parametrize("router", [EngineRouter, IngressRouter])
def test_routers_use_no_private_name_of_serves_router(router):
    of_serve = set().union(
        *(private_names(inspect.getsource(base)) for base in serve.PowerOfTwoChoicesRequestRouter.__mro__[:-2])
    )
    assert {"_replicas", "_fulfill_next_pending_request"} <= of_serve
    assert (
        private_names(inspect.getsource(router)) & (of_serve | private_names((HOME / "serve.py").read_text())) == set()
    )
