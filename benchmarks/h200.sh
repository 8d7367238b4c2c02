#!/bin/sh
# Everything to measure on one GPU, as steps. Several may be named; together they end within SECONDS_ALLOWED (540):
#
#     sh benchmarks/h200.sh check attention   # kernels against float64; variants, peers, the sweep
#     sh benchmarks/h200.sh forward           # the whole transformer, its peers, fp8, offload; distances to fp32
#     sh benchmarks/h200.sh memory curve      # peaks under limits; frames and sizes
#     sh benchmarks/h200.sh fewer             # 720p, and what the steps above left out
#     DRY=1 sh benchmarks/h200.sh check attention forward memory curve fewer    # tiny, on the CPU, to test this script
#
# Results go to OUT (default benchmarks/results), one JSON file a program, saved after every row. What lies in
# benchmarks/results already is not measured again: copy what came back there before the next step, and a run that was cut
# off goes on where it stopped. RETRY=1 measures failed rows again. attention_gpu.json sets bsa/tuned.json, which the
# steps after it use; `python benchmarks/tune.py` and `python benchmarks/tables.py` do the same for good.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
results=benchmarks/results
out=${OUT:-$results}
dry=${DRY:+--smoke}
end=$(($(date +%s) + ${SECONDS_ALLOWED:-540}))
export PYTHONUNBUFFERED=1
status=0
mkdir -p "$out"
tuned=bsa/tuned.json
if [ -n "$dry" ]; then
    results=$out
    tuned=$out/tuned.json
fi

end_in() { echo $((end - $(date +%s))); }
say() { echo "== $* ($(end_in) s left)"; }

# PROGRAM RESULT [OPTIONS]: run until it ends by itself or the time is over; again after a lost CUDA context.
measure() {
    program=$1 result=$2
    shift 2
    if [ ! -e "$out/$result.json" ] && [ -e "$results/$result.json" ]; then
        cp "$results/$result.json" "$out/$result.json"
    fi
    tries=0
    while :; do
        left=$(end_in)
        if [ "$left" -lt 15 ]; then
            echo "== no time for $program $*"
            status=1
            return
        fi
        say "$program $*"
        code=0
        timeout -k 5 "$left" "$python" "benchmarks/$program.py" --output "$out/$result.json" --budget $((left - 10)) \
            $dry ${RETRY:+--retry} "$@" || code=$?
        tries=$((tries + 1))
        if [ "$code" -ne 3 ] || [ "$tries" -ge 5 ]; then
            break
        fi
    done
    if [ "$code" -ne 0 ]; then
        echo "== $program $* ended with $code"
        status=1
    fi
}

tune() {
    if [ -e "$out/attention_gpu.json" ]; then
        "$python" benchmarks/tune.py --input "$out/attention_gpu.json" --output "$tuned"
    elif [ -e "$results/attention_gpu.json" ]; then
        "$python" benchmarks/tune.py --input "$results/attention_gpu.json" --output "$tuned"
    fi
}

for step in "$@"; do
    case $step in
    check)
        # Compiling takes longer than all measurements of the kernels, so all variants compile at once.
        say warm
        timeout -k 5 "$(end_in)" "$python" benchmarks/attention.py --part warm $dry || status=1
        say kernel_check
        timeout -k 5 "$(end_in)" "$python" benchmarks/kernel_check.py --output "$out/kernel_check.json" \
            ${dry:+--device cpu} || status=1
        measure fused_check fused
        ;;
    attention)
        measure attention attention_gpu --part variants
        tune
        measure attention attention_gpu --part peers
        measure attention attention_gpu --part sweep
        if [ -z "$dry" ]; then
            measure kernel_limits kernel_limits
        fi
        ;;
    forward)
        tune
        measure forward forward
        measure forward forward --numerics
        if [ -z "$dry" ]; then
            measure forward_profile forward_profile
        fi
        ;;
    memory)
        tune
        measure memory memory
        ;;
    curve)
        tune
        measure cost_curve cost_curve
        ;;
    fewer)
        tune
        measure forward forward --size 720p --few
        measure forward forward
        measure cost_curve cost_curve
        measure memory memory
        ;;
    *)
        echo "unknown step $step" >&2
        exit 2
        ;;
    esac
done
echo "== done, status $status"
exit $status
