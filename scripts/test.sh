#!/usr/bin/env bash
# All tests. Those that only compute run beside the others, which mostly wait for processes, and give way to them. The last
# lines name what failed, also where a whole half ended before it could say so.
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
said=$(mktemp -d)
color=()
[ -t 1 ] && color=(--color=yes)
nice -n 10 "$python" -m pytest --timeout=900 -o cache_dir=.pytest_cache/beside "${computing[@]}" >"$said/beside" 2>&1 &
beside=$!
"$python" -m pytest "${color[@]}" "${computing[@]/#/--ignore=}" >"$said/others" 2>&1 &
others=$!
# Not a pipe, which processes that a broken test left behind would keep open.
tail -f -n +1 --pid="$others" "$said/others" &
shown=$!

# What is said of a half at the end: nothing if it passed, or the names of what failed, or where it broke off.
name_failed() { # name, exit status
    case $2 in 0 | 5) return ;; esac
    local lines
    lines=$(sed 's/\x1b\[[0-9;]*m//g' "$said/$1")
    printf '\n=== failed: %s (pytest ended with status %s)\n' "$1" "$2"
    if tail -n 1 <<<"$lines" | grep -qE '^=+ .* in [0-9.]+s'; then
        grep -E '^(FAILED|ERROR) ' <<<"$lines" | cut -c 1-300 | tail -n 15
    else
        echo "it broke off; its last lines:"
        tail -n 20 <<<"$lines" | cut -c 1-300
    fi
}
show_beside() {
    printf '\n=== beside them: %s\n' "${computing[*]}"
    cat "$said/beside"
}
end_with() {
    kill -INT "$others" "$beside" 2>/dev/null
    wait
    show_beside
    exit "$1"
}
trap 'rm -rf "$said"' EXIT
trap 'end_with 130' INT
trap 'end_with 143' TERM

wait "$others"
first=$?
wait "$beside"
second=$?
wait "$shown"
show_beside
name_failed others "$first"
name_failed beside "$second"
# 5: PYTEST_ADDOPTS left this half no test. Both may not be without.
for status in "$first" "$second"; do
    case $status in 0 | 5) ;; *) exit "$status" ;; esac
done
[ "$first" -eq 0 ] || [ "$second" -eq 0 ] || exit 5
