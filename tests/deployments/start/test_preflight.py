"""What is wrong with an environment is one line before anything starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bireme.__main__ import PACKAGES
from cluster.errors import BiremeError
from deployments.native import frame_writer
from deployments.start.preflight import (
    OwnServerError,
    PortTakenError,
    check_cache,
    check_cluster,
    check_listening,
    check_port,
    check_temporary_folder,
)
from deployments.start.serve_environment import free_port
from gpu_ops.build import OpBuildError, build_library

ROOT = Path(__file__).resolve().parents[3]


def serve_error(*arguments: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "BIREME_API"))}
    ran = subprocess.run(
        [sys.executable, "-m", "bireme", "serve", *arguments],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT), "COLUMNS": "500", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1), ran.stderr
    return ran.stderr


@pytest.mark.parametrize("host", ["192.0.2.77", "2001:db8::77", "no.such.host.invalid"])
def test_a_host_that_is_not_this_machines_is_one_line(host):
    with pytest.raises(BiremeError, match="choose another with --host") as caught:
        check_listening(host, free_port())
    assert repr(host) in caught.value.message


def test_a_port_is_taken_where_the_server_would_listen_and_nowhere_else():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(BiremeError, match=f"port {port} is taken"):
                check_listening(host, port)
        check_listening("127.0.0.2", port)


def test_a_port_that_a_server_of_ones_own_has_is_told_with_how_to_end_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError) as caught:
            check_port("127.0.0.1", port, tmp_path)
        assert not isinstance(caught.value, OwnServerError)
        began = time.strftime("session_%Y-%m-%d_%H-%M-%S_000000", time.localtime())
        logs = tmp_path / "ray" / f"{began}_{os.getpid()}" / "logs" / "serve"
        logs.mkdir(parents=True)
        (logs / "proxy_1.log").write_text(f"INFO proxy 1 -- HAProxy starting on node ab (HTTP port: {port}).\n")
        with pytest.raises(OwnServerError, match=rf"\(process {os.getppid()}\); .*`kill {os.getppid()}`, .* --port"):
            check_port("127.0.0.1", port, tmp_path)


def test_a_cluster_that_does_not_answer_is_one_line_after_two_seconds_at_most():
    port = free_port()
    begun = time.monotonic()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(BiremeError, match=r"no Ray answers at .* unset RAY_ADDRESS"):
            check_cluster(address, False, {})
    with socket.socket() as full:  # takes no connection: its queue is full
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        with pytest.raises(BiremeError, match="no Ray answers at"):
            check_cluster(f"127.0.0.1:{full.getsockname()[1]}", False, {})
        for one in waiting:
            one.close()
    assert time.monotonic() - begun < 3.5


def test_a_key_that_protects_nothing_on_a_cluster_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as ray:
        address = f"127.0.0.1:{ray.getsockname()[1]}"
        with pytest.raises(
            BiremeError, match=r"BIREME_API_KEY in this shell protects nothing .* api_keys_file"
        ) as caught:
            check_cluster(address, False, {"BIREME_API_KEY": "secret"})
        assert "secret" not in caught.value.message
        check_cluster(address, True, {"BIREME_API_KEY": "secret"})
        check_cluster(address, False, {})


def test_a_temporary_folder_that_is_none_is_one_line(tmp_path):
    with pytest.raises(
        BiremeError, match=r"TMPDIR=.* cannot be written to: No such file or directory; .* unset TMPDIR"
    ):
        check_temporary_folder({"TMPDIR": str(tmp_path / "none")})
    with pytest.raises(BiremeError, match=r"TMPDIR=/proc/self cannot be written to: "):
        check_temporary_folder({"TMPDIR": "/proc/self"})  # as on a disk that is read-only, to root, too
    check_temporary_folder({"TMPDIR": str(tmp_path)})
    check_temporary_folder({})


def test_a_cache_that_is_no_folder_is_one_line_that_names_the_variable(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    for folder, why in ((file, "it is no folder"), (file / "below", "it cannot be made: Not a directory")):
        error = f"BIREME_CACHE={folder}: {why}; set BIREME_CACHE to a folder of your own"
        assert serve_error("--port", str(free_port()), BIREME_CACHE=str(folder)).startswith(f"Error: {error}")
        monkeypatch.setenv("BIREME_CACHE", str(folder))
        with pytest.raises(BiremeError, match="set BIREME_CACHE"):
            check_cache()
        with pytest.raises(OpBuildError, match=f"cannot be written to {folder}.*set BIREME_CACHE"):
            build_library(frame_writer.SOURCE)
    monkeypatch.setenv("BIREME_CACHE", str(tmp_path / "new" / "cache"))
    check_cache()


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("way", ["PYTHONPATH", "folder"])
def test_another_package_of_our_name_is_named_with_its_path(tmp_path, name, way):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a stranger was imported')")
    path = f"{tmp_path}:{ROOT}" if way == "PYTHONPATH" else str(ROOT)
    ran = subprocess.run(
        [sys.executable, str(ROOT / "bireme" / "__main__.py"), "serve", "--port", str(free_port())],
        cwd=tmp_path if way == "folder" else ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    start = f"Error: Python finds another {name} in {tmp_path / name} before"
    assert (ran.returncode, ran.stderr.count("\n"), ran.stderr[: len(start)]) == (1, 1, start)


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_folder_that_was_removed_is_one_line(tmp_path, command):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"rmdir {gone} && exec {sys.executable} -m bireme {command}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(["sh", "-c", script], cwd=gone, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1), ran.stderr
    assert ran.stderr.startswith("Error: the folder of this shell was removed")


def test_too_few_descriptors_are_one_line_with_what_to_do():
    script = """
import resource, sys
from deployments.native import frame_writer
from deployments.start.preflight import check_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
check_descriptors()
resource.setrlimit(resource.RLIMIT_NOFILE, (1023, 1023))
check_descriptors()
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "a process may have 1023 files and connections open (ulimit -Hn): 1024 are the least" in ran.stderr


def test_the_command_looks_before_it_starts(tmp_path):
    port = free_port()
    assert "'192.0.2.77' is no address of this machine" in serve_error("--host", "192.0.2.77")
    assert "no Ray answers at" in serve_error(RAY_ADDRESS=f"127.0.0.1:{port}")
    assert "TMPDIR=" in serve_error(TMPDIR=str(tmp_path / "none"))
