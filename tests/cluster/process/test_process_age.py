"""The age of a process."""

import subprocess
import sys
import time

from cluster.process.process_age import process_age_s


def test_age_grows_as_time_does_and_begins_with_the_process():
    before, started = process_age_s(), time.monotonic()
    program = "from cluster.process.process_age import process_age_s; print(process_age_s())"
    age = float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    took = time.monotonic() - started
    assert 0 < age <= took + 0.02  # the kernel counts in hundredths
    assert abs(process_age_s() - before - (time.monotonic() - started)) < 0.02
