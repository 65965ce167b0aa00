"""Write docs/conformance.md from the table that the tests send to a server: ``python docs/make_conformance_page.py``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.deployments.whole_application.conformance import page  # noqa: E402 (the script runs without an installed package)

if __name__ == "__main__":
    (ROOT / "docs" / "conformance.md").write_text(page(), encoding="utf-8")
