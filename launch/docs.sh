#!/usr/bin/env bash
# Makes .venv if need be, and builds the documentation into site/; a broken link is an error.
# FLAX_ADAPT_VENV=DIR uses the environment in DIR instead of .venv.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/environment.sh"

install docs
cd "$root"
export NO_MKDOCS_2_WARNING=1  # about a later version of the tool
"$venv/bin/mkdocs" build --strict --clean "$@"
echo "open $root/site/index.html"
