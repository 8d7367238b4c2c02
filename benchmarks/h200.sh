#!/bin/sh
# Everything to measure on one Hopper GPU, in order of worth, as steps that each end within ten minutes:
#
#     sh benchmarks/h200.sh check      # kernels against float64, then the tests that need a GPU
#     sh benchmarks/h200.sh attention  # variants of the kernel, peers, the sweep
#     sh benchmarks/h200.sh forward [VARIANT]  # whole transformer; VARIANT: the kernel that won
#     sh benchmarks/h200.sh curve [VARIANT]
#     sh benchmarks/h200.sh memory [VARIANT]
#
# Results go to OUT (default benchmarks/results), one JSON file a step, saved after every row. A step that was cut off
# goes on where it stopped when OUT still holds its file.
set -eu
step=$1
variant=${2:-}
out=${OUT:-benchmarks/results}
python=${PYTHON:-python3}
chosen=${variant:+--variant $variant --fused-top-k}
export PYTHONUNBUFFERED=1
mkdir -p "$out"
case $step in
check)
    "$python" benchmarks/kernel_check.py --output "$out/kernel_check_h200.json" | tee "$out/kernel_check.log"
    "$python" benchmarks/fused_check.py | tee "$out/fused_check.log"
    ;;
attention)
    "$python" benchmarks/attention.py --part variants --budget 240 --output "$out/attention_gpu.json"
    "$python" benchmarks/attention.py --part peers --budget 180 --output "$out/attention_gpu.json"
    "$python" benchmarks/attention.py --part sweep --budget 120 --output "$out/attention_gpu.json"
    ;;
forward)
    "$python" benchmarks/forward.py --budget 300 $chosen --output "$out/forward.json"
    "$python" benchmarks/forward.py --budget 180 --size 720p $chosen --output "$out/forward.json"
    ;;
curve)
    "$python" benchmarks/forward.py --curve --budget 500 $chosen --output "$out/cost_curve.json"
    ;;
memory)
    "$python" benchmarks/forward.py --memory --budget 300 $chosen --output "$out/memory.json"
    ;;
*)
    echo "unknown step $step" >&2
    exit 2
    ;;
esac
