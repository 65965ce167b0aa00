"""All tests, in three parts. Those that only compute run beside the others, which mostly wait for processes, and give way to
them. Those with faults have a pytest of their own: Ray ends a process that has lost its cluster. The last lines name what failed.

    .venv/bin/python scripts/test.py                                     all
    .venv/bin/python scripts/test.py -m "not slow" tests/gpu_ops         one pytest with these arguments
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# None of them starts Ray, or holds anything to a time that a busy machine could not keep.
COMPUTING = [
    "tests/gpu_ops",
    "tests/learned",
    *(f"tests/actors/{r}" for r in ("engine", "models", "model_files", "scheduling")),
]
FAULTS = "tests/chaos"
# What Ray says when it ends a process that has not reached its cluster's head for a minute.
RAY_ENDED_IT = b"Failed to connect to GCS within"
NO_TESTS = 5
_LOOK_S = 0.2
_GRACE_S = 20.0
_MOST_NAMES, _MOST_LINES, _WIDTH = 20, 20, 300


class Part:
    """One pytest.

    Attributes:
        status: of its end, as a shell has it.
    """

    def __init__(self, name: str, folder: Path, arguments: list[str], command: tuple[str, ...] = ()) -> None:
        self.name = name
        self.status = 0
        # Not a pipe, which processes that a broken test left behind would keep open.
        self._log, self._notes = folder / f"{name}.log", folder / f"{name}.notes"
        pytest = [*command, sys.executable, "-m", "pytest", "-p", "tests.failure_notes", *arguments]
        with open(self._log, "ab") as log:
            environment = {**os.environ, "BIREME_FAILURE_NOTES": str(self._notes)}
            self._process = subprocess.Popen(pytest, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def show(self) -> None:
        """Print what it says as it comes, until it has ended."""
        with open(self._log, "rb") as log:
            try:
                while self._process.poll() is None:
                    _print(log.read())
                    time.sleep(_LOOK_S)
            finally:
                self.stop()
                _print(log.read())
        status = self._process.wait()
        self.status = status if status >= 0 else 128 - status

    def stop(self) -> None:
        """End it, if it has not ended; what it says of that is in its log."""
        for number, patience_s in ((signal.SIGINT, _GRACE_S), (signal.SIGKILL, None)):
            if self._process.poll() is None:
                self._process.send_signal(number)
                try:
                    self._process.wait(patience_s)
                except subprocess.TimeoutExpired:
                    continue

    @property
    def has_failed(self) -> bool:
        return self.status not in (0, NO_TESTS)

    @property
    def was_ended_by_ray(self) -> bool:
        """It broke off before any test had failed, and Ray says that it did so."""
        names, has_ended = self._noted()
        return self.has_failed and not names and not has_ended and RAY_ENDED_IT in self._log.read_bytes()

    def summary(self) -> str:
        """What failed, or where it broke off; empty if nothing did."""
        if not self.has_failed:
            return ""
        names, has_ended = self._noted()
        lines = [f"=== failed: {self.name} (pytest ended with status {self.status})", *names[:_MOST_NAMES]]
        if len(names) > _MOST_NAMES:
            lines.append(f"and {len(names) - _MOST_NAMES} more")
        if not has_ended:
            said = self._log.read_text(errors="replace").splitlines()
            lines += ["it broke off; its last lines:", *said[-_MOST_LINES:]]
        return "\n".join(["", *(line[:_WIDTH] for line in lines)])

    def _noted(self) -> tuple[list[str], bool]:
        """Names of what failed, and whether its session has ended."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [line for line in lines if line], "" in lines


def main() -> int:
    """Run all tests; the exit status."""
    signal.signal(signal.SIGTERM, _terminated)
    parts: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="bireme-tests-") as folder:
        try:
            words = _run(Path(folder), parts)
        except KeyboardInterrupt:
            for part in parts:
                part.stop()
            return 128 + signal.SIGINT
        for line in (*words, *(part.summary() for part in parts)):
            if line:
                print(line, flush=True)
    statuses = {part.status for part in parts}
    # Where PYTEST_ADDOPTS leaves one part without a test, the others count.
    return next((part.status for part in parts if part.has_failed), 0 if 0 in statuses else NO_TESTS)


def _run(folder: Path, parts: list[Part]) -> list[str]:
    """Run the parts, which are added to ``parts`` as they begin; what is to be said beside their own words."""
    words = []
    color = ["--color=yes"] if sys.stdout.isatty() else []
    aside = ["--timeout=900", "-o", "cache_dir=.pytest_cache/beside"]
    parts.append(computing := Part("computing", folder, [*aside, *color, *COMPUTING], ("nice", "-n", "10")))
    # What native code says is seen, too.
    with_faults = ["--capture=tee-sys", *color, FAULTS]
    parts.append(faults := Part("faults", folder, with_faults))
    faults.show()
    if faults.was_ended_by_ray:
        words.append("\n=== Ray had lost its cluster and ended the tests with faults once; they ran again")
        print(words[0], flush=True)
        parts[-1] = Part("faults-again", folder, with_faults)
        parts[-1].show()
    parts.append(others := Part("others", folder, [*color, *(f"--ignore={path}" for path in (FAULTS, *COMPUTING))]))
    others.show()
    print(f"\n=== beside them: {' '.join(COMPUTING)}", flush=True)
    computing.show()
    return words


def _print(said: bytes) -> None:
    sys.stdout.buffer.write(said)
    sys.stdout.buffer.flush()


def _terminated(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.chdir(ROOT)
    if sys.argv[1:]:
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
    sys.exit(main())
