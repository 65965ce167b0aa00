#!/usr/bin/env bash
# All tests, in three parts. Those that only compute run beside the others, which mostly wait for processes, and give way to them.
# Those with faults have a pytest of their own: Ray ends a process that has lost its cluster, and says why on its standard error.
# The last lines name what failed, also where a part broke off before it could say so.
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
faults=tests/chaos
said=$(mktemp -d)
color=()
[ -t 1 ] && color=(--color=yes)
nice -n 10 "$python" -m pytest --timeout=900 -o cache_dir=.pytest_cache/beside "${computing[@]}" >"$said/computing" 2>&1 &
computing_pid=$!
shown_pid=

plain() { # name: what a part said, without colors
    sed 's/\x1b\[[0-9;]*m//g' "$said/$1"
}
has_broken_off() { # name
    ! plain "$1" | tail -n 1 | grep -qE '^=+ .* in [0-9.]+s'
}
run_shown() { # name, arguments of pytest: its status
    : >"$said/$1"
    "$python" -m pytest "${color[@]}" "${@:2}" >"$said/$1" 2>&1 &
    shown_pid=$!
    # Not a pipe, which processes that a broken test left behind would keep open.
    tail -f -n +1 --pid="$shown_pid" "$said/$1" &
    local tail_pid=$! status
    wait "$shown_pid"
    status=$?
    wait "$tail_pid"
    return "$status"
}
# What is said of a part at the end: nothing if it passed, or the names of what failed, or where it broke off.
name_failed() { # name, status
    case $2 in 0 | 5) return ;; esac
    printf '\n=== failed: %s (pytest ended with status %s)\n' "$1" "$2"
    if has_broken_off "$1"; then
        echo "it broke off; its last lines:"
        plain "$1" | tail -n 20 | cut -c 1-300
    else
        plain "$1" | grep -E '^(FAILED|ERROR) ' | cut -c 1-300 | tail -n 15
    fi
}
show_computing() {
    printf '\n=== beside them: %s\n' "${computing[*]}"
    cat "$said/computing"
}
end_with() {
    kill -INT $shown_pid "$computing_pid" 2>/dev/null
    wait
    show_computing
    exit "$1"
}
trap 'rm -rf "$said"' EXIT
trap 'end_with 130' INT
trap 'end_with 143' TERM

run_shown faults --capture=tee-sys "$faults"
status_faults=$?
if [ "$status_faults" -ne 0 ] && has_broken_off faults; then
    # Of the requests that ran nothing is known then: nobody was there to compare them.
    printf '\n=== the tests with faults broke off (status %s): once more\n' "$status_faults"
    cp "$said/faults" build/faults-broken-off.log 2>/dev/null
    run_shown faults --capture=tee-sys "$faults"
    status_faults=$?
fi
run_shown others "--ignore=$faults" "${computing[@]/#/--ignore=}"
status_others=$?
wait "$computing_pid"
status_computing=$?
show_computing
name_failed computing "$status_computing"
name_failed faults "$status_faults"
name_failed others "$status_others"
statuses=("$status_faults" "$status_others" "$status_computing")
# 5: PYTEST_ADDOPTS left this part no test. Not all may be without.
for status in "${statuses[@]}"; do
    case $status in 0 | 5) ;; *) exit "$status" ;; esac
done
case " ${statuses[*]} " in *" 0 "*) ;; *) exit 5 ;; esac
