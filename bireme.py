"""The ``bireme`` command, as far as it must go before anything of the project is imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command in ``sys.argv``. A server is watched by a process that has imported next to nothing."""
    if sys.argv[1:2] == ["serve"]:
        from deployments.supervision.supervisor import supervised

        supervised()
    from deployments.cli import app

    app()


if __name__ == "__main__":
    main()
