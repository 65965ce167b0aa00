#!/usr/bin/env bash
# All tests. Those that only compute run beside the others, which mostly wait for processes, and give way to them.
#
# With arguments, one pytest with these: scripts/test.sh -m "not slow" tests/gpu_ops
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python

if [ $# -gt 0 ]; then
    exec "$python" -m pytest "$@"
fi

# None of them starts Ray, or holds anything to its time.
computing=(tests/gpu_ops tests/learned tests/actors/{engine,models,model_files,scheduling})
said=$(mktemp)
nice -n 10 "$python" -m pytest "${computing[@]}" >"$said" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null; rm -f "$said"' EXIT
trap 'exit 130' INT TERM

"$python" -m pytest "${computing[@]/#/--ignore=}"
first=$?
wait "$beside"
second=$?
echo
echo "=== beside them: ${computing[*]}"
cat "$said"
[ "$first" -eq 0 ] && [ "$second" -eq 0 ]
