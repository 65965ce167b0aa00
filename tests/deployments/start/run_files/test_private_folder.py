"""The folder that no other user may enter: what it may be, and what is refused in one line."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import BiremeError
from deployments.start.ray_session import keep_ray_private, ray_base
from deployments.start.run_files.private_folder import private_base

NOBODY = 65534
NAME = f"bireme-{os.geteuid()}"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to be another user")


@pytest.fixture
def parent() -> Iterator[Path]:
    """On a short path."""
    folder = tempfile.mkdtemp(dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


def test_it_is_made_once_and_for_this_user_alone(parent):
    before = os.umask(0)
    try:
        folder = private_base(str(parent))
    finally:
        os.umask(before)
    assert (folder, stat.S_IMODE(folder.stat().st_mode)) == (parent / NAME, 0o700)
    assert private_base(str(parent)) == folder


def open_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (open_folder, "is open to other users (mode 0755)"),
        (lambda path: path.symlink_to("/tmp"), "is no folder"),
        (lambda path: path.touch(), "is no folder"),
        pytest.param(
            lambda path: (path.mkdir(0o700), os.chown(path, NOBODY, -1)),
            f"belongs to another user (uid {NOBODY})",
            marks=as_root,
        ),
    ],
)
def test_what_somebody_put_in_its_place_is_refused_in_one_line(parent, make, fault):
    make(parent / NAME)
    with pytest.raises(BiremeError) as caught:
        private_base(str(parent))
    assert caught.value.message.startswith(f"{parent / NAME} {fault}")
    assert "set TMPDIR to a folder of your own" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_parent_that_others_may_write_to_is_refused_unless_it_keeps_their_hands_off(parent):
    parent.chmod(0o777)
    with pytest.raises(BiremeError, match="may be written to by other users"):
        private_base(str(parent))
    parent.chmod(0o1777)
    assert private_base(str(parent)) == parent / NAME


def test_paths_of_sockets_stay_short_enough_for_ray():
    longest = private_base("/tmp/" + "x" * 200)
    assert longest.parent == Path("/tmp")
    below = "/ray/session_2026-11-28_12-34-56_123456_1234567/sockets/plasma_store"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        for length in range(1, 60):
            parent = Path(folder, "x" * length)
            parent.mkdir()
            assert len(str(private_base(str(parent))) + below) <= 107


_AS_STARTED = """
import os, sys
from pathlib import Path
from deployments.start.ray_session import keep_ray_private, ray_base
environment = {"RAY_TMPDIR": sys.argv[1]}
keep_ray_private(ray_base(environment), environment)
Path(sys.argv[1], "log").touch()
os.mkdir(Path(sys.argv[1], "folder"))
print(environment["RAY_TMPDIR"])
"""


def test_rays_files_and_token_are_this_users_alone(parent):
    """In a process of its own, whose umask it is."""
    token = parent / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    started = subprocess.run(
        [sys.executable, "-c", _AS_STARTED, str(parent)],
        env={**os.environ, "HOME": str(parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert started.stdout == f"{parent / NAME}\n"
    names = [".ray/auth_token", "log", "folder", NAME]
    assert [stat.S_IMODE((parent / name).stat().st_mode) for name in names] == [0o600, 0o600, 0o700, 0o700]


@as_root
def test_a_token_that_is_a_link_is_left_alone(parent, monkeypatch):
    monkeypatch.setenv("HOME", str(parent))
    (parent / ".ray").mkdir()
    (parent / "elsewhere").touch(0o644)
    (parent / ".ray" / "auth_token").symlink_to(parent / "elsewhere")
    before = os.umask(0o022)
    try:
        keep_ray_private(ray_base({"RAY_TMPDIR": str(parent)}), {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((parent / "elsewhere").stat().st_mode) == 0o644
