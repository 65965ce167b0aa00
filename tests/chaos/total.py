"""``python -m tests.chaos.total report.json ...``: several reports as one; exits as ``Report.exit_code`` says."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.chaos.report import Report


def main() -> None:
    report = Report.total(Report.from_json(Path(name).read_text()) for name in sys.argv[1:])
    print(f"{report}\n\n{report.table()}")
    sys.exit(report.exit_code)


if __name__ == "__main__":
    main()
