"""The results of a batch file, of a run before: what they hold, and answers in the place of errors."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cluster.client.batch_file import is_error, requests_of
from cluster.errors import BiremeError


class Done(NamedTuple):
    """What a file of results holds: so many, and which of them are errors, from 0 on."""

    num_results: int
    failed: tuple[int, ...] = ()


def results_of(requests: Path, output: Path) -> Done:
    """What ``output`` holds of a run before; half a line at its end, where that was interrupted, is cut off.

    Raises:
        BiremeError: the results are those of other requests.
    """
    done = end = 0
    failed = []
    with open(requests, "rb") as asked, open(output, "r+b") as found:
        wanted = requests_of(asked)
        for line in found:
            if not line.endswith(b"\n"):
                break
            try:
                result = json.loads(line)
                custom_id, has_failed = result["custom_id"], is_error(result)
            except (ValueError, KeyError, TypeError):
                raise _others(output, done) from None
            request = next(wanted, None)
            # A line that had no name may have one since.
            is_corrected = has_failed and custom_id is None
            if request is None or (request.custom_id != custom_id and not is_corrected):
                raise _others(output, done)
            failed += [done] if has_failed else []
            done, end = done + 1, end + len(line)
        found.truncate(end)
    return Done(done, tuple(failed))


def _others(output: Path, done: int) -> BiremeError:
    return BiremeError(
        f"{output}: line {done + 1} is no result of these requests; name another file with -o, or remove it"
    )


def put_in_place(output: Path, failed: tuple[int, ...], again: BinaryIO) -> None:
    """The whole lines of ``again`` instead of the first of the results that ``failed``; ``output`` is at all times whole."""
    output = output.resolve()
    again.seek(0)
    places = set(failed)
    with tempfile.NamedTemporaryFile(dir=output.parent, prefix=f"{output.name}.", delete=False) as merged:
        try:
            with open(output, "rb") as before:
                for i, line in enumerate(before):
                    newer = again.readline() if i in places else b""
                    merged.write(newer if newer.endswith(b"\n") else line)
            merged.flush()
            shutil.copymode(output, merged.name)
            os.replace(merged.name, output)
        except BaseException:
            os.unlink(merged.name)
            raise
