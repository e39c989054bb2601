#!/usr/bin/env bash
# Measures the training steps on the GPU of this machine, beside torch, in about six minutes.
#
#   bash benchmarks/on_gpu.sh OUT [--dry-run]
#
# OUT     a folder; steps.jsonl has a line for each program, attention.jsonl one for each
#         kind of attention, *.log what was printed
# --dry-run   the same at a tiny size, in float32, where there is no GPU
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch needs memory, too

common=(--dtype=bfloat16 --compile --rounds=7 --repeat=10)
# program, size, examples of a step
programs=("mae L 128" "mae L 256" "distill B 128" "mae B 256" "mlm B 128"
    "contrast B 128" "finetune 50 256" "finetune B 128" "features B 256")
kinds=()
if [ "${2:-}" = --dry-run ]; then
    common=(--rounds=1)
    programs=("mae Ti 2" "features Ti 2")
    kinds=(--lengths=50)
fi

together=$(mktemp -d)
trap 'rm -rf "$together"' EXIT
measure() { # PROGRAM SIZE BATCH: a process that ends without a line does not hold up others
    local name=$1_$2_$3
    "$python" "$here/steps.py" --program="$1" --size="$2" --batch="$3" "${common[@]}" \
        --together="$together,${#programs[@]}" >"$out/$name.json" 2>"$out/$name.log" ||
        echo "$name: $(tail -n 1 "$out/$name.log")"
    touch "$together/$name.ready"
}
for program in "${programs[@]}"; do
    read -r name size batch <<<"$program"
    measure "$name" "$size" "$batch" &
done
wait
cat "$out"/*_*.json >"$out/steps.jsonl"
"$python" "$here/attention.py" "${kinds[@]}" >"$out/attention.jsonl" 2>"$out/attention.log" ||
    echo "attention: $(tail -n 1 "$out/attention.log")"
wc -l "$out/steps.jsonl" "$out/attention.jsonl"
