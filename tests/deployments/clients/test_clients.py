"""Third-party clients: whole and streamed answers, and errors in each library's own classes."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.config import DEFAULT_MODEL
from tests.deployments.clients.environment import Clients, UnavailableError, clients
from tests.deployments.conftest import CALLING, KEYS, App, wait_for

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parent / "programs"
# The class of each error, or one that it is derived from: too long a prompt, a wrong key, no room.
EXPECTED = {
    "litellm_client.py": ("ContextWindowExceededError", "AuthenticationError", "RateLimitError"),
    "langchain_client.py": ("ContextOverflowError", "AuthenticationError", "RateLimitError"),
    "instructor_client.py": ("BadRequestError", "AuthenticationError", "RateLimitError"),
    "pydantic_ai_client.py": ("ModelHTTPError", "ModelHTTPError", "ModelHTTPError"),
    "openai_js.mjs": ("BadRequestError", "AuthenticationError", "RateLimitError"),
}
# Those that read an answer into a model of it.
DESCRIBING = ("instructor_client.py", "pydantic_ai_client.py")
NO_GUIDELLM = (
    "guidellm 0.8.1 pins click~=8.4.0 (the lock has 8.5.1) and needs torch, whose wheels for Linux on PyPI bring CUDA"
)
TIMEOUT_S = 100.0  # a program takes some seconds, most of them to import its library


@pytest.fixture(scope="module")
def environment() -> Clients:
    try:
        return clients()
    except UnavailableError as error:
        pytest.skip(str(error))


@contextmanager
def busy(app: App) -> Iterator[None]:
    """Of another key's requests four run and two wait, which leaves no room for many more."""
    over = threading.Event()

    def stream() -> None:
        with app.client() as client:
            for _ in client.stream_complete("On and on:", n=6, max_tokens=4000, ignore_eos=True):
                if over.is_set():
                    return

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        wait_for(lambda: app.stats()["num_requests_waiting"] == 2, 20, "no requests wait")
        time.sleep(0.6)  # engines tell their room four times a second
        yield
    finally:
        over.set()
        thread.join(30)
    app.wait_until_idle()


@pytest.mark.parametrize("program", [*EXPECTED, pytest.param("guidellm", marks=pytest.mark.skip(reason=NO_GUIDELLM))])
def test_a_client_gets_answers_and_its_own_errors(app: App, environment: Clients, program: str):
    is_js = program.endswith(".mjs")
    if is_js and environment.no_js is not None:
        pytest.skip(environment.no_js)
    command = [environment.node if is_js else environment.python, PROGRAMS / program, app.url, DEFAULT_MODEL, KEYS[0]]
    if is_js:
        command.append(environment.root)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*map(str, command)], cwd=environment.root, **pipes) as process:
        watchdog = threading.Timer(TIMEOUT_S, process.kill)
        watchdog.start()
        said = []
        for line in process.stdout:
            said.append(line)
            if line == "READY\n":
                with busy(app):
                    rest, _ = process.communicate("\n")
                said += rest.splitlines()
                break
        watchdog.cancel()
    reports = [line for line in said if line.startswith("REPORT ")]
    assert len(reports) == 1, "".join(said)[-4000:]
    found = json.loads(reports[0].removeprefix("REPORT "))
    assert found["whole"] == found["streamed"] == "The capital of France is Paris."
    if program in DESCRIBING:
        check_lake(found["described"])
    overflow, key, full = EXPECTED[program]
    for what, name, status in (
        ("overflow", overflow, 400),
        ("overflow streamed", overflow, 400),
        ("key", key, 401),
        ("busy", full, 429),
    ):
        assert name in found[what]["classes"] and found[what]["status"] == status, (what, found[what])


def check_lake(lake: dict) -> None:
    """Whether it is what the programs describe as ``Lake``."""
    assert set(lake) == {"name", "size", "salty"}
    assert len(lake["name"]) <= 12 and lake["size"] in ("small", "large") and isinstance(lake["salty"], bool)


@pytest.mark.parametrize("program", ["instructor_tools.py", "pydantic_ai_tools.py"])
def test_a_client_that_offers_its_models_as_tools_gets_them(calling: App, environment: Clients, program: str):
    command = [environment.python, PROGRAMS / program, calling.url, CALLING, KEYS[0]]
    ran = subprocess.run([*map(str, command)], cwd=environment.root, capture_output=True, text=True, timeout=TIMEOUT_S)
    reports = [line for line in ran.stdout.splitlines() if line.startswith("REPORT ")]
    assert len(reports) == 1, (ran.stdout + ran.stderr)[-2500:]
    check_lake(json.loads(reports[0].removeprefix("REPORT ")))
