#!/usr/bin/env bash
# What is to be seen on a machine with a GPU, in parts, each under a time limit of its own; a table of all figures comes last.
#     scripts/gpu_visit.sh a b            DEVICE=cpu scripts/gpu_visit.sh b c f k m p  tries what runs without a GPU, at small sizes
#   a  ops against their twins, the engine, random steps, side by side                     about 100 s, at most 180
#   b  every op, a whole step over its floor, and the engine's own steps, at 1 and 64 rows  about 110 s, at most 190
#   c  8B served to 64 clients: step over device time, memory, a recording of steps         about  80 s, at most 130
#   d  prompts of 3,500 and 8,000 tokens with steps of at most 2,048, 4,096 and 8,192       about  75 s, at most 150
#   e  as c with steps of 8,192 tokens, long prompts and most of the memory: does the plan hold?  80 s, at most 130
#   f  the engine with batch_invariant                                                      about  40 s, at most  80
#   g  what ncu says of the attention of SmolLM2 at 64 rows and of an 8B prompt             about  60 s, at most 150
#   h  two replicas on two GPUs, one of them killed                                         about  90 s, at most 180
#   i  the end-to-end tests of tests/deployments                                            about 150 s, at most 240
#   j  compute-sanitizer's memcheck and racecheck over the small ops                        about 100 s, at most 150
#   k  `serve run ray_configs/llama_8b_gpu.yaml`, and its end                              about  50 s, at most 120
#   l  chaos: six engines on one GPU, killed and stopped under load ($CHAOS_SECONDS, $CHAOS_SEEDS side by side)  at most 560
#   m  weights from their file: bits, GB/s; 8B starts first, with the file, and with a spare     about 170 s, at most 290
#   o  quantised weights on the processor: ops against their twins, tokens per second on two cores for 1 to 16 sequences
#      ($LLAMA_BATCHED_BENCH beside them; $MODEL: a GGUF file)                               about 200 s, at most 520
#   p  what grammars cost a step and a first token: 8B sizes, vocabulary of 128,256, at 1, 8 and 64 rows   about 70 s, at most 150
#   n  the serving plane: HTTP beside in process, two engines beside one (with two GPUs), engines that compute nothing;
#      CPU time of a token and a request by process at 1, 64, 128 and 512 streams           about 500 s, at most 600
# Times are without the build of the ops, which comes first. What a part prints goes to $OUT/logs.tgz, the table also to
# $OUT/table.txt ($OUT by default: a temporary folder). BIREME_CUDA_ARCHS=90a builds for one chip, which is quick.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-$(mktemp -d)}
logs=$(mktemp -d)
mkdir -p "$out"
device=${DEVICE:-gpu}
export OUT=$logs PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
export BIREME_SERVING_DEVICE=$device BIREME_TEST_DEVICE=$device
python=${PYTHON:-python3}
# No project's settings of pytest: their plugins need not be there. Nor the other folders' fixtures.
pytest=("$python" -m pytest -q -p no:cacheprovider -c /dev/null --rootdir=.)
gpu_tests=("${pytest[@]}" --confcutdir=tests/gpu)
table=()
status=0

# limited SIGNAL SECONDS NAME COMMAND...: run it with its output in NAME.log, and say how it ended.
limited() {
    local signal=$1 seconds=$2 name=$3 start=$SECONDS code=0
    shift 3
    timeout -s "$signal" -k 20 "$seconds" "$@" >"$logs/$name.log" 2>&1 || code=$?
    echo "$name: exit $code after $((SECONDS - start)) s" | tee -a "$logs/ends.txt"
    return $code
}

# say NAME COUNT PATTERN: into the table, the last COUNT lines of NAME.log that have PATTERN.
say() {
    local lines
    lines=$(grep -aE "$3" "$logs/$1.log" | tail -n "$2" | cut -c1-"${WIDTH:-260}")
    table+=("-- $1: $(grep "^$1:" "$logs/ends.txt" | tail -1 | cut -d: -f2-)" "${lines:-$(tail -n 4 "$logs/$1.log" | cut -c1-200)}")
}

tests_of() { # NAME: what failed, and the last line
    say "$1" 9 '^(FAILED|ERROR|E  )|passed|failed|skipped|of [0-9]+ tokens|cosine|clock to|ready after|ended|by engine|queue:|bytes'
}

engine=("$python" -m benchmarks.gpu.bench_engine --dummy --device "$device")
serving=("$python" -m benchmarks.gpu.bench_serving)
serving_lines='answers|tokens/s|first token|steps:|cores|memory|otherData|ratio|step / device|Error'
[ "$device" = cpu ] && small=(--models smollm2 --rows 1 2 --context 32 --steps 24) || small=()

part_a() {
    local workers=()
    "$python" -c "import xdist" 2>/dev/null && workers=(-n 5)
    limited TERM 180 a-ops "${gpu_tests[@]}" "${workers[@]}" tests/gpu/test_{attention,decode_ops,layers,linear,sampling,state}.py &
    limited TERM 180 a-engine "${gpu_tests[@]}" -s tests/gpu/test_engine_gpu.py &
    limited TERM 180 a-random env BIREME_RANDOM_STEPS="${RANDOM_STEPS:-10000}" "${gpu_tests[@]}" tests/gpu/test_random_steps.py &
    local job
    for job in $(jobs -p); do wait "$job" || status=1; done
    tests_of a-ops
    tests_of a-engine
    tests_of a-random
}

part_b() {
    if [ "$device" = gpu ]; then
        limited TERM 90 b-ops "$python" -m benchmarks.gpu.bench_ops --rows 1 64 --prompt 3500 || status=1
        say b-ops 24 'peaks| step |batch_invariant|decode_attention|attention|forward|matmuls|Error'
    fi
    limited TERM 100 b-engine "${engine[@]}" --rows 1 64 --steps 60 "${small[@]}" || status=1
    say b-engine 9 'peaks|ready|rows: step|memory in|Error'
}

part_c() {
    local options=(--seconds 15 --trace "$logs/steps-under-load.json")
    [ "$device" = cpu ] && options=(--config ray_configs/smollm2_cpu.yaml --clients 3 --seconds 4 --prompt 8-32 --answer 8-16)
    limited INT 130 c-serving "${serving[@]}" --log "$logs/c-server.log" "${options[@]}" || status=1
    say c-serving 9 "$serving_lines"
}

part_d() {
    local budget budgets=(2048 4096 8192) options=(--models llama_8b --rows 1 --slots 64 --context 64 --steps 24 --prefill 3500 8000)
    [ "$device" = cpu ] && budgets=(64 128) options=("${small[@]}" --prefill 150)
    for budget in "${budgets[@]}"; do
        limited TERM 50 "d-$budget" "${engine[@]}" "${options[@]}" --budget "$budget" || status=1
        WIDTH=420 say "d-$budget" 4 'prompt of|memory in|Error'
    done
}

part_e() {
    local options=(--seconds 15 --prompt 16-4000 --set max_num_batched_tokens=8192 gpu_memory_utilization=0.95)
    [ "$device" = cpu ] &&
        options=(--config ray_configs/smollm2_cpu.yaml --clients 3 --seconds 4 --prompt 8-64 --answer 8-16 --set max_num_batched_tokens=128)
    limited INT 130 e-serving "${serving[@]}" --log "$logs/e-server.log" "${options[@]}" || status=1
    say e-serving 9 "$serving_lines"
}

part_f() {
    local options=(--models llama_8b --rows 1 64 --steps 60 --prefill 3500)
    [ "$device" = cpu ] && options=("${small[@]}" --prefill 150)
    limited TERM 80 f-engine "${engine[@]}" --batch-invariant "${options[@]}" || status=1
    WIDTH=420 say f-engine 6 'rows: step|prompt of|memory in|Error'
}

part_g() {
    if ! command -v ncu >/dev/null; then
        table+=("-- g: no ncu here")
        return
    fi
    local stalls metrics=() stall
    for stall in long_scoreboard short_scoreboard barrier membar wait math_pipe_throttle not_selected no_instruction; do
        metrics+=("smsp__average_warps_issue_stalled_${stall}_per_issue_active.ratio")
    done
    stalls=$(IFS=, && echo "${metrics[*]}")
    profile() { # NAME KERNEL OPTIONS...
        local name=$1 kernel=$2
        shift 2
        limited TERM 70 "$name" ncu --clock-control none --set full --import-source no --metrics "$stalls" -k "regex:$kernel" \
            --launch-skip 4 -c 1 "$python" -m benchmarks.gpu.run_attention "$@" || status=1
        WIDTH=110 say "$name" 30 'Duration|Throughput|Registers Per|Achieved Occ|Theoretical Occ|Eligible|Active Warps|Issued Warp|Executed Ipc|Hit Rate|Max Bandwidth|stalled_.*ratio|Tensor|rror'
    }
    profile g-decode decode_kernel --model smollm2 --rows 64
    profile g-chunk chunk_wgmma_kernel --model llama_8b --prompt 2048 --context 1452
}

part_h() {
    limited INT 180 h-replicas "${gpu_tests[@]}" -s tests/gpu/test_serving_gpu.py -k two_replicas || status=1
    tests_of h-replicas
}

part_i() {
    # TEST_SITE: a folder with pytest-asyncio, where it is not installed.
    limited INT 240 i-deployments env PYTHONPATH="${TEST_SITE:+$TEST_SITE:}$PYTHONPATH" "${pytest[@]}" -o asyncio_mode=auto -o filterwarnings=ignore \
        --durations=5 tests/deployments/whole_application/test_{app,crowd,chat_command,readme,autoscaling_{spares,from_zero,ingresses,objectives}}.py \
        tests/deployments/{openai_api/test_resume,metrics/test_metrics,admin/test_timeline,replica/test_token_socket}.py || status=1
    tests_of i-deployments
}

part_j() {
    if ! command -v compute-sanitizer >/dev/null; then
        table+=("-- j: no compute-sanitizer here")
        return
    fi
    local tool job
    for tool in memcheck racecheck; do
        # API errors are left out: a Paddle build without code for this chip makes one, on purpose, when an engine starts.
        limited TERM 150 "j-$tool" compute-sanitizer --tool $tool --report-api-errors no --error-exitcode 9 --print-limit 5 \
            "$python" -m tests.gpu.parts.small_ops &
    done
    for job in $(jobs -p); do wait "$job" || status=1; done
    for tool in memcheck racecheck; do say "j-$tool" 8 'Invalid|ERROR SUMMARY|RACECHECK SUMMARY|all equal|Error|hazard'; done
}

part_k() {
    limited INT 120 k-serve-run "${gpu_tests[@]}" -s tests/gpu/test_serve_run.py || status=1
    tests_of k-serve-run
}

part_l() {
    # TOKENIZER: a tokenizer.json or GGUF file, where the default model cannot be fetched.
    local seed options=(--device "$device" --haproxy --engines "${CHAOS_ENGINES:-6}" --faults 1000 --seconds "${CHAOS_SECONDS:-420}")
    [ -n "${TOKENIZER:-}" ] && options+=(--tokenizer "$TOKENIZER")
    for seed in ${CHAOS_SEEDS:-1}; do
        limited TERM $((${CHAOS_SECONDS:-420} + 140)) "l-$seed" "$python" -m tests.chaos.run "${options[@]}" --seed "$seed" \
            --json "$logs/l-$seed.json" &
        sleep 25 # until it listens: clusters that start together find the same ports free
    done
    local job
    for job in $(jobs -p); do wait "$job" || status=1; done
    for seed in ${CHAOS_SEEDS:-1}; do say "l-$seed" 12 '^(seeds|requests:|LATE|LOST|CHANGED|LEAK)|Error|assert'; done
    limited TERM 30 l-total "$python" -m tests.chaos.total "$logs"/l-*.json || status=1
    say l-total 40 '^\||requests|LATE'
}

part_m() {
    local options=(--config ray_configs/llama_8b_gpu.yaml) gib=4
    [ "$device" = cpu ] && options=() gib=0.25
    limited TERM 60 m-bits "${gpu_tests[@]}" tests/gpu/test_kept_weights.py || status=1
    tests_of m-bits
    limited TERM 40 m-upload "$python" -m benchmarks.gpu.bench_upload --device "$device" --gib "$gib" || status=1
    say m-upload 12 'GB/s|GiB|Error'
    limited INT 180 m-starts "$python" -m benchmarks.serving.bench_start --rounds 3 --from-nothing "${options[@]}" || status=1
    say m-starts 20 '│|kept|Error'
    limited INT 90 m-spare "$python" -m benchmarks.serving.bench_start --rounds 2 --warm-spares 1 "${options[@]}" || status=1
    say m-spare 20 '│|Error'
}

part_n() {
    # TOKENIZER: as for l.
    local options=(--device "$device" --logs "$logs" --json "$logs/n-plane.json")
    [ -n "${TOKENIZER:-}" ] && options+=(--tokenizer "$TOKENIZER")
    limited INT 480 n-plane "$python" -m benchmarks.gpu.bench_plane_table "${options[@]}" || status=1
    say n-plane 52 '^\| |cores$|tokens of each engine|in all$'
    options=(--seconds 3 --step-ms 10 --json "$logs/n-hops.json")
    [ "$device" = cpu ] && options+=(--streams 1 8 --seconds 1)
    limited INT 120 n-hops "$python" -m benchmarks.serving.bench_plane "${options[@]}" || status=1
    say n-hops 14 '^\| |cores;|Error'
}

part_o() {
    # LLAMA_BATCHED_BENCH: llama.cpp's program. MODEL: where the default model cannot be fetched.
    local cores rows="1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16" options=()
    cores=$(taskset -cp $$ | sed 's/.*: //' | "$python" -c "
cores = [str(c) for part in input().split(',') for c in range(int(part.split('-')[0]), int(part.split('-')[-1]) + 1)]
print(','.join(cores[:2]))")
    [ -n "${MODEL:-}" ] && options+=(--model "$MODEL")
    [ -n "${LLAMA_BATCHED_BENCH:-}" ] && options+=(--llama-batched-bench "$LLAMA_BATCHED_BENCH")
    limited TERM 120 o-ops "${pytest[@]}" --confcutdir=tests/gpu_ops tests/gpu_ops/quantised || status=1
    tests_of o-ops
    limited TERM 400 o-formats taskset -c "$cores" "$python" -m benchmarks.bench_weight_formats --rounds "${ROUNDS:-2}" \
        --rows "${ROWS:-$rows}" --no-quality "${options[@]}" || status=1
    WIDTH=900 say o-formats 40 '│|threads of|llama.cpp|GGML_|of weights|Error'
}

part_p() {
    local options=(--device "$device" --model llama_8b --rows 1,8,64 --rounds "${ROUNDS:-8}")
    [ "$device" = cpu ] && options=(--model small_llama --rows 1,4 --rounds "${ROUNDS:-2}")
    limited TERM 150 p-grammar "$python" -m benchmarks.bench_grammar "${options[@]}" || status=1
    say p-grammar 13 'vocabulary|of plain|Error'
}

visit() {
    for part in "$@"; do
        declare -F "part_$part" >/dev/null || { echo "gpu_visit.sh: no part $part; there are a to p" >&2; exit 2; }
    done
    echo "== build"
    time "$python" -c "from gpu_ops.build import build; print(build())" || exit 1
    for part in "$@"; do
        "part_$part"
        printf '%s\n' "${table[@]}" >"$out/table.txt"
        tar -C "$logs" -czf "$out/logs.tgz" .
    done
    echo "== table"
    cat "$out/table.txt"
    exit $status
}

visit "$@"
