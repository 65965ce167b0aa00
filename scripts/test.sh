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

# None of them starts Ray, or holds anything to a time that a busy machine could not keep.
computing=(tests/gpu_ops tests/learned tests/actors/{engine,models,model_files,scheduling})
said=$(mktemp)
nice -n 10 "$python" -m pytest --timeout=900 -o cache_dir=.pytest_cache/beside "${computing[@]}" >"$said" 2>&1 &
beside=$!
"$python" -m pytest "${computing[@]/#/--ignore=}" &
others=$!

show_beside() {
    printf '\n=== beside them: %s\n' "${computing[*]}"
    cat "$said"
    rm -f "$said"
}
end_with() {
    kill -INT "$others" "$beside" 2>/dev/null
    wait
    exit "$1"
}
trap show_beside EXIT
trap 'end_with 130' INT
trap 'end_with 143' TERM

wait "$others"
first=$?
wait "$beside"
second=$?
# 5: PYTEST_ADDOPTS left this half no test. Both may not be without.
for status in "$first" "$second"; do
    case $status in 0 | 5) ;; *) exit "$status" ;; esac
done
[ "$first" -eq 0 ] || [ "$second" -eq 0 ] || exit 5
