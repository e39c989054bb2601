# shellcheck shell=bash
# Sourced by test.sh, quickstart.sh and .ci/run. Needs $root, the checkout. Sets $venv.

export PIP_DISABLE_PIP_VERSION_CHECK=1
venv=${FLAX_ADAPT_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac

# Prints the first Python >= 3.11 it finds.
find_python() {
    local python
    for python in python3.11 python3 python3.12 python3.13 python3.14; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "Python 3.11 or newer is needed, and none was found: install it, then run this again" >&2
    return 1
}

# One line that changes whenever what would be installed changes.
fingerprint() {
    (cd "$root" && find setup.py pyproject.toml flax_adapt configs -type f \
        ! -path '*/__pycache__/*' -exec cksum {} + | sort | cksum)
}

# install [EXTRA]: installs this checkout into $venv, unless exactly this is there already.
install() {
    local extra=${1:-} target=$root stamp stamps now python
    if [ -n "$extra" ]; then target="${root}[$extra]"; fi
    stamp=$venv/.flax_adapt_installed${extra:+_$extra}
    now=$(fingerprint)
    # What was installed with the tools of an extra serves without them too.
    case $extra in
        "") stamps=("$venv"/.flax_adapt_installed*) ;;
        # The tools of the tests include what the quickstart needs.
        quickstart) stamps=("$stamp" "$venv/.flax_adapt_installed_test") ;;
        *) stamps=("$stamp") ;;
    esac
    if grep -qxsF -- "$now" "${stamps[@]}"; then return; fi
    python=$(find_python) || return 1
    echo "Installing into $venv (one to five minutes the first time)"
    "$python" -m venv "$venv" || {
        echo "$python cannot make a virtual environment: install its venv module" >&2
        return 1
    }
    # setuptools would ship files that a former build left here and the checkout has lost.
    rm -rf "$root/build/lib" "$root"/build/bdist.*
    grep -LxsF -- "$now" "$venv"/.flax_adapt_installed* | xargs -r rm -f || true
    "$venv/bin/python" -m pip install -q "$target"
    echo "$now" >"$stamp"
}
