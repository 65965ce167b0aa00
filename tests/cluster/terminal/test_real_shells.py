"""Completion in shells themselves: what bash puts behind a half-typed word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BIREME = Path(sys.executable).parent / "bireme"
# As readline does it: words parted at its break characters, then the function that complete(1) names.
TYPED = """
set -u
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} COMP_TYPE=9
read -ra parts <<< "${2//=/ = }"
COMP_WORDS=("${parts[@]}")
[[ $2 == *' ' ]] && COMP_WORDS+=("")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
function=$(complete -p bireme | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" bireme
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "bireme.bash"
    environment = {**os.environ, "_BIREME_COMPLETE": "source_bash"}
    shown = subprocess.run([BIREME], env=environment, capture_output=True, text=True, timeout=60, check=True)
    path.write_text(shown.stdout)
    return path


@pytest.mark.skipif(shutil.which("bash") is None or not BIREME.exists(), reason="needs bash and an installed bireme")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("bireme serve smollm2_c", {"smollm2_cpu"}),
        ("bireme serve own", {"own.gguf", "own.yaml", "own_folder/"}),
        ("bireme serve own.yaml max_num_s", {"max_num_seqs=16"}),
        ("bireme serve load_format=", {"auto", "dummy"}),
        ("bireme serve load_format=du", {"dummy"}),
        ("bireme serve --load-format ", {"auto", "dummy"}),
        ("bireme serve smollm2_cpu --routing-policy le", {"least_tokens"}),
        ("bireme serve --no-enforce", {"--no-enforce-eager"}),
        ("bireme serve own.yaml autoscaling.slo_t", {"autoscaling.slo_ttft_s=", "autoscaling.slo_tpot_ms="}),
        ("bireme serve --swap", set()),
        ("bireme serve --served-model-n", {"--served-model-name"}),
        ("bireme serve --enable-prefix", {"--enable-prefix-caching"}),
        ("bireme config check smollm2_g", {"smollm2_gpu"}),
        ("bireme pull smollm2-1", {"smollm2-135m-instruct"}),
    ],
)
def test_bash_offers_what_may_come(script, tmp_path, typed, offered):
    for name in ("own.gguf", "own.yaml", "own.txt"):
        (tmp_path / name).touch()
    (tmp_path / "own_folder").mkdir()
    environment = {**os.environ, "PATH": f"{BIREME.parent}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", "--norc", "-c", TYPED, "bash", script, typed],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert set(ran.stdout.split()) == offered, ran.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_are_valid(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    environment = {**os.environ, "_BIREME_COMPLETE": f"source_{shell}"}
    shown = subprocess.run([BIREME], env=environment, capture_output=True, text=True, timeout=60, check=True)
    subprocess.run([shell, "-n"], input=shown.stdout, text=True, timeout=60, check=True)
