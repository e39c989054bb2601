#!/usr/bin/env bash
# Makes .venv if need be, installs flax_adapt, and runs the whole method on real digits.
# Arguments go to the command:  bash launch/quickstart.sh --config.seed=1
# WORKDIR=DIR sets where results go (runs/quickstart); a second call prints them again.
# FLAX_ADAPT_VENV=DIR uses the environment in DIR instead of .venv.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/environment.sh"

install quickstart
exec "$venv/bin/flax-adapt" run --config=quickstart \
    --workdir="${WORKDIR:-$root/runs/quickstart}" "$@"
