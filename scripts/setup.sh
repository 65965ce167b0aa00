#!/bin/sh
# Makes .venv ready: finds a Python 3.10 to 3.12 that really runs and hands over to environment.py.
# PYTHON=... chooses the interpreter; without it an environment that is already there keeps its own.
set -eu
cd "$(dirname "$0")/.."

# A name on the PATH proves nothing: version managers leave shims behind for interpreters that are not active.
fits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if ! fits "$PYTHON"; then
        echo "PYTHON=$PYTHON: this is not a Python 3.10, 3.11 or 3.12 that runs." >&2
        exit 1
    fi
    exec "$PYTHON" scripts/environment.py
fi
for candidate in .venv/bin/python python3.12 python3.11 python3.10 python3 python; do
    if fits "$candidate"; then
        exec "$candidate" scripts/environment.py
    fi
done
echo "No Python 3.10, 3.11 or 3.12 was found (tried python3.12, python3.11, python3.10, python3 and python)." >&2
echo "Install one (Debian: apt-get install python3 python3-venv), or name yours: make PYTHON=/path/to/python3.11 ..." >&2
exit 1
