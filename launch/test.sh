#!/usr/bin/env bash
# Makes .venv if need be, installs this checkout with its test tools, and runs every test.
# Arguments go to pytest:  bash launch/test.sh -k masking
# FLAX_ADAPT_VENV=DIR uses the environment in DIR instead of .venv.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/environment.sh"

install test
cd "$root"
# `pytest`, not `python -m pytest`: the tests import the installed package.
# worksteal: a module stays with one worker, which makes its fixtures once.
exec "$venv/bin/pytest" -n 2 --dist worksteal "$@"
