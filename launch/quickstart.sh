#!/usr/bin/env bash
# Makes .venv if need be, installs flax_adapt, and adapts a small model to real digits.
# Arguments go to `flax-adapt adapt`:  bash launch/quickstart.sh --method=contrast
# WORKDIR=DIR sets where results go (runs/quickstart); a second call prints them again.
# PRETRAIN_STEPS=N makes another "released" model (400 steps).
# FLAX_ADAPT_VENV=DIR uses the environment in DIR instead of .venv.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/environment.sh"

install quickstart
workdir=${WORKDIR:-$root/runs/quickstart}
digits=builtin:digits
"$venv/bin/flax-adapt" run --workdir="$workdir/released" --noreport \
    --config="quickstart:adapt_steps=0,pretrain_steps=${PRETRAIN_STEPS:-400}"
exec "$venv/bin/flax-adapt" adapt --workdir="$workdir/adapted" \
    --init="$workdir/released/stages/pretrain/export" --unlabelled=$digits@unlabelled \
    --labelled=$digits@labelled --test=$digits@held_out --budget=steps:250 --seeds=3 "$@"
