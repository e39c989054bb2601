#!/usr/bin/env bash
# Measures training steps on the GPU of this machine, beside torch, in about six minutes.
#
#   bash benchmarks/on_gpu.sh OUT [--dry-run]
#
# OUT     a folder; steps.jsonl has a line for each program, attention.jsonl one for each
#         kind of attention, *.log what was printed
# --dry-run   the same at a tiny size, in float32, where there is no GPU
#
# All programs compile at the same time, then each is measured alone.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch needs memory, too
# cuBLAS for products: one Triton kernel of float32 can take minutes to compile.
export XLA_FLAGS="--xla_gpu_enable_triton_gemm=false${XLA_FLAGS:+ $XLA_FLAGS}"

common=(--dtype=bfloat16 --rounds=5 --repeat=5)
# program, size, examples of a step, options
programs=(
    "mae L 128 --compile" "distill B 128 --compile" "mlm B 128 --compile"
    "contrast B 64 --compile" "features B 256 --compile"
    "mae L 128 --noreference --scan" "mae B 256 --noreference")
kinds=("--lengths=50,128,197" "--head_dims=32,64")
if [ "${2:-}" = --dry-run ]; then
    common=(--rounds=1)
    programs=("mae Ti 2" "features Ti 2" "mae Ti 2 --noreference --scan")
    kinds=(--lengths=50 --head_dims=32 --tokens=500)
fi

together=$(mktemp -d)
trap 'rm -rf "$together"' EXIT
measure() { # NUMBER PROGRAM SIZE BATCH [OPTION...]
    local name=$2_$3_$1
    "$python" "$here/steps.py" --program="$2" --size="$3" --batch="$4" "${@:5}" \
        "${common[@]}" --together="$together,${#programs[@]}" \
        >"$out/$name.json" 2>"$out/$name.log" ||
        echo "$name: $(tail -n 1 "$out/$name.log" | cut -c 1-300)"
    touch "$together/$name.ready" # who ends without a line does not hold up the others
    cat "$out/$name.json" >>"$out/steps.jsonl"
}
: >"$out/steps.jsonl"
for number in "${!programs[@]}"; do
    read -ra words <<<"${programs[$number]}"
    measure "$number" "${words[@]}" &
done
wait
"$python" "$here/attention.py" "${kinds[@]}" >"$out/attention.jsonl" 2>"$out/attention.log" ||
    echo "attention: $(tail -n 1 "$out/attention.log" | cut -c 1-300)"
wc -l "$out/steps.jsonl" "$out/attention.jsonl"
