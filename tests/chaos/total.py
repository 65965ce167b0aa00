"""``python -m tests.chaos.total report.json ...``: several reports as one; exit code 1 if anything was lost, changed or left."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.chaos.report import Report


def main() -> None:
    report = Report.total(Report.from_json(Path(name).read_text()) for name in sys.argv[1:])
    print(f"{report}\n\n{report.table()}")
    sys.exit(0 if report.is_clean else 1)


if __name__ == "__main__":
    main()
