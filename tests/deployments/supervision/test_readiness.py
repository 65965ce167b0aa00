"""Why a start ends, out of what Ray Serve says of it; and that it ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

from deployments.start.serve_environment import free_port
from deployments.supervision.readiness import last_error, not_ready, out_of_time, what_failed
from tests.deployments.supervision.signals import ROOT

TRACEBACK = """The deployment failed to start 1 times in a row. Error:
Traceback (most recent call last):
  File "engine_replica.py", line 76, in __init__
    raise cannot_start(str(error.cause)) from None
RuntimeError: the model cannot be served: no config.json in /models/x"""


def application(status: str, deployment_status: str, message: str = "", **replicas: int) -> ApplicationStatusOverview:
    trigger = DeploymentStatusTrigger.UNSPECIFIED
    deployment = DeploymentStatusOverview(DeploymentStatus(deployment_status), trigger, replicas, message)
    return ApplicationStatusOverview(ApplicationStatus(status), "", 0.0, {"LLMServer": deployment})


def test_the_last_error_of_a_traceback_has_no_colours():
    message = "\x1b[36mray::Proxy.ready()\x1b[39m (pid=1)\n  File x\n\x1b[31mRuntimeError: it\x1b[0m failed\n"
    assert last_error(message) == "RuntimeError: it failed"
    assert last_error("\x1b[36ma\x1b[39m\nb") == "a b"


def test_a_failed_application_is_named_with_its_last_error():
    failed = application("DEPLOY_FAILED", "DEPLOY_FAILED", TRACEBACK)
    assert what_failed({"default": failed}) == (
        "application default did not start: LLMServer: "
        "RuntimeError: the model cannot be served: no config.json in /models/x"
    )
    assert what_failed({"default": application("DEPLOYING", "UPDATING")}) is None
    # Serve tries again, to no end.
    assert "no config.json in /models/x" in str(
        what_failed({"default": application("DEPLOYING", "UPDATING", TRACEBACK)})
    )
    # A process died, and another one may not.
    died = "A replica failed to start with exception. Retrying 2 more time(s). Error:\nray.exceptions.ActorDiedError: killed"
    assert what_failed({"default": application("DEPLOYING", "UPDATING", died)}) is None
    assert what_failed({"default": application("RUNNING", "HEALTHY", TRACEBACK)}) is None


def test_what_is_waited_for_is_named_until_all_run():
    waits = application("DEPLOYING", "UPDATING", "1 replicas take more than 30s\nto be scheduled.", STARTING=1)
    assert not_ready({"default": waits, "other": application("RUNNING", "HEALTHY")}) == (
        "application default: LLMServer: 1 starting (1 replicas take more than 30s to be scheduled.)"
    )
    assert not_ready({"default": application("RUNNING", "HEALTHY", RUNNING=1)}) is None
    assert not_ready({}) == "Ray Serve has not begun with the application"


def test_each_application_has_the_time_that_its_own_settings_give_it():
    waits, runs = application("DEPLOYING", "UPDATING", STARTING=1), application("RUNNING", "HEALTHY", RUNNING=1)
    patience_s = {"large": 600.0, "small": 20.0}
    assert out_of_time({"large": waits, "small": waits}, patience_s, 19) is None
    assert out_of_time({"large": waits, "small": runs}, patience_s, 599) is None
    assert out_of_time({"large": waits, "small": waits}, patience_s, 21) == (
        "not ready after start_timeout_s=20: application small: LLMServer: 1 starting"
    )
    late = out_of_time({"large": waits, "small": runs}, patience_s, 601)
    assert late == "not ready after start_timeout_s=600: application large: LLMServer: 1 starting"
    assert out_of_time({}, patience_s, 21) == (
        "not ready after start_timeout_s=20: Ray Serve has not begun with the application"
    )


@pytest.mark.slow
def test_a_start_that_takes_too_long_ends_with_the_reason(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ran = subprocess.run(
        [sys.executable, "-m", "bireme", "serve", "start_timeout_s=1", "--port", str(free_port())],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 1
    first, *_, last = ran.stderr.splitlines()
    assert first.startswith("Error: not ready after start_timeout_s=1: ")
    assert "Traceback" not in ran.stderr
    log = Path(last.removeprefix("The log: "))
    assert "Started a local Ray instance" in log.read_text(), "what Ray says is in the log"
    assert "Ray instance" not in ran.stdout + ran.stderr
    assert re.search(r"^  Ray +[\d.]+ s$", ran.stdout, re.MULTILINE), "the stages that ended are shown with their times"
