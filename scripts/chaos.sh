#!/usr/bin/env bash
# The long chaos scenarios one after the other: most faults behind HAProxy, a tenth each on several nodes, while calls of Ray fail,
# and while engines come and go and requests move between them.
#     scripts/chaos.sh FAULTS SEED
# Exit code 1 if anything was lost, changed or left, 2 if some streams only waited for longer than they should.
set -uo pipefail
cd "$(dirname "$0")/.."
faults=$1 seed=$2 worst=0
some=$(((faults + 9) / 10))
scenario() {
    local code=0
    .venv/bin/python -m tests.chaos.run --seed "$seed" "$@" || code=$?
    # What was lost is worse than what was late.
    if [ "$worst" -eq 0 ] || { [ "$worst" -eq 2 ] && [ $code -ne 0 ]; }; then worst=$code; fi
}
scenario --haproxy --engines 5 --faults $((faults - 3 * some))
scenario --engines 4 --nodes 4 --faults $some
scenario --haproxy --engines 5 --rpc-failures 1 --faults $some
scenario --scales --slots 2 --engines 3 --faults $some
exit $worst
