#!/usr/bin/env bash
# Several chaos scenarios side by side, each with its own cluster and seed, and the sum of their reports.
#     scripts/chaos_many.sh SECONDS FIRST_SEED COUNT [arguments of tests.chaos.run ...]
# Every fourth scenario runs on several nodes, every fourth with failing calls of Ray. No fault begins after SECONDS. Reports and
# logs go to $OUT (default: a temporary folder); exit code 1 if anything was lost, changed or left, or a report is
# missing, 2 if some only took too long.
set -uo pipefail
cd "$(dirname "$0")/.."
seconds=$1 first=$2 count=$3
shift 3
out=${OUT:-$(mktemp -d)}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
for ((i = 0; i < count; i++)); do
    seed=$((first + i))
    kind=()
    case $((i % 4)) in
    1) kind=(--nodes 4) ;;
    3) kind=(--rpc-failures 1) ;;
    esac
    # Clusters that start in the same second would look for free ports at the same time.
    (
        sleep $((${STAGGER:-4} * i))
        exec timeout $((seconds + ${SLACK:-480})) "$python" -m tests.chaos.run --seed $seed --faults 1000 --seconds "$seconds" \
            --json "$out/seed-$seed.json" "${kind[@]}" "$@" >"$out/seed-$seed.log" 2>&1
    ) &
done
wait
for ((seed = first; seed < first + count; seed++)); do
    [ -e "$out/seed-$seed.json" ] && continue
    echo "seed $seed made no report: $(grep -aE 'Error|assert' "$out/seed-$seed.log" | tail -1)"
    missing=1
done
"$python" -m tests.chaos.total "$out"/seed-*.json
code=$?
exit $((code == 0 && ${missing:-0} ? 1 : code))
