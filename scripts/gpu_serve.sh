#!/usr/bin/env bash
# The served application on a machine with a GPU, paddlepaddle-gpu, Ray and pytest; figures come last.
#     scripts/gpu_serve.sh [tests] [serving] [engine] [replicas] [starts]     (default: the first three; replicas needs two GPUs;
#     starts: from no engine to the first token with the 8B sizes, without and with a warm spare)
# Logs go to $OUT (default: a temporary folder). BIREME_CUDA_ARCHS=90a builds for one chip, which is quick.
# DEVICE=cpu tries tests and serving where there is no GPU, with SmolLM2.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
export OUT=$out PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 BIREME_SERVING_DEVICE=${DEVICE:-gpu}
parts=${*:-tests serving engine}
status=0

echo "== build"
time python3 -c "from gpu_ops.build import build; print(build())" || exit 1

run_tests() { # NAME OPTIONS...
    local name=$1
    shift
    timeout "${TESTS_TIMEOUT:-150}" python3 -m pytest -q -s -p no:cacheprovider -c /dev/null --rootdir=. \
        --confcutdir=tests/gpu tests/gpu/test_serving_gpu.py "$@" >"$out/$name.log" 2>&1 || status=1
    grep -E "^(FAILED|ERROR|E  )|ready after|ended|queue:|by engine|bytes" "$out/$name.log" | cut -c1-250 | head -40
    tail -1 "$out/$name.log"
}

if [[ $parts == *tests* ]]; then
    echo "== tests over HTTP"
    run_tests tests -k "not two_replicas"
fi
if [[ $parts == *serving* ]]; then
    echo "== served under load"
    options=${SERVING_OPTIONS:-"--config ray_configs/llama_8b_gpu.yaml"}
    # shellcheck disable=SC2086
    timeout "${SERVING_TIMEOUT:-120}" python3 -m benchmarks.gpu.bench_serving $options --log "$out/serve.log" \
        >"$out/serving.txt" 2>&1 || status=1
    tail -12 "$out/serving.txt" | cut -c1-400
    grep -hE "ready after|GiB: weights|CUDA graphs|loading \[#####" "$out/serve.log" | tail -12 | cut -c1-200
fi
if [[ $parts == *engine* ]]; then
    echo "== engine in process"
    # shellcheck disable=SC2086
    timeout "${ENGINE_TIMEOUT:-120}" python3 -m benchmarks.gpu.bench_engine ${ENGINE_OPTIONS:---rows 8 64 256 --prefill 3500 8000} \
        >"$out/engine.txt" 2>&1 || status=1
    grep -vE "^ *$|WARNING" "$out/engine.txt" | tail -16 | cut -c1-400
fi
if [[ $parts == *replicas* ]]; then
    echo "== two replicas"
    run_tests replicas -k two_replicas
fi
if [[ $parts == *starts* ]]; then
    for spares in 0 1; do
        echo "== starts with $spares warm spares"
        # shellcheck disable=SC2086
        timeout "${STARTS_TIMEOUT:-240}" python3 -m benchmarks.serving.bench_start --rounds "${STARTS:-3}" --warm-spares $spares \
            ${STARTS_OPTIONS:---config ray_configs/llama_8b_gpu.yaml} >"$out/starts-$spares.txt" 2>&1 || status=1
        tail -18 "$out/starts-$spares.txt" | cut -c1-200
    done
fi
exit $status
