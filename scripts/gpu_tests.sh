#!/usr/bin/env bash
# Tests and benchmark of the GPU ops, on a machine with a GPU, paddlepaddle-gpu, nvcc and pytest; figures come last.
#     scripts/gpu_tests.sh [tests] [sanitizers] [bench]     (default: all three)
# Logs go to $OUT (default: a temporary folder). BIREME_CUDA_ARCHS=90a builds for one chip, which is quick.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-$(mktemp -d)}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
parts=${*:-tests sanitizers bench}
status=0

echo "== build"
time python3 -c "from gpu_ops.build import build; print(build(lambda name, done, total: print(done, total, name)))" || exit 1

if [[ $parts == *tests* ]]; then
    echo "== tests"
    # The other folders' fixtures need packages that a GPU-only machine may not have.
    timeout "${TESTS_TIMEOUT:-240}" python3 -m pytest -q -p no:cacheprovider -c /dev/null --rootdir=. --confcutdir=tests/gpu \
        tests/gpu >"$out/tests.log" 2>&1 || status=1
    grep -E "^(FAILED|ERROR|E  )" "$out/tests.log" | cut -c1-220 | head -60
    tail -2 "$out/tests.log"
fi
if [[ $parts == *sanitizers* ]]; then
    for run in "memcheck small_ops" "racecheck small_ops" "memcheck small_engine"; do
        read -r tool program <<<"$run"
        echo "== compute-sanitizer $tool: $program"
        # API errors are left out: a Paddle build without code for this chip makes one, on purpose, when an engine starts.
        timeout "${SANITIZER_TIMEOUT:-120}" compute-sanitizer --tool $tool --report-api-errors no --error-exitcode 9 --print-limit 5 \
            python3 -m tests.gpu.$program >"$out/$tool-$program.log" 2>&1 || { echo "$run: exit $?"; status=1; }
        grep -vE "^\s*$|Saved host backtrace|Host Frame|=+ +in .*\.so" "$out/$tool-$program.log" | tail -12 | cut -c1-200
    done
fi
if [[ $parts == *bench* ]]; then
    echo "== benchmark"
    timeout "${BENCH_TIMEOUT:-240}" python3 -m benchmarks.gpu.bench_ops ${BENCH_OPTIONS:-} 2>&1 | tee "$out/bench.log" || status=1
fi
exit $status
