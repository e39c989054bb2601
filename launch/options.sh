# shellcheck shell=bash
# Sourced by the launchers. Each sets `defaults`, an associative array NAME -> value, and calls
# `read_options "$@"`, which fills `option` and puts the flax-adapt command into `command`.

declare -A option
command=()

# fail TEXT: one line on stderr, exit code 2.
fail() {
    echo "$(basename "$0"): $1" >&2
    exit 2
}

# Options --NAME=VALUE (or --NAME alone: yes) before the flax-adapt command and its flags.
read_options() {
    local name value
    for name in "${!defaults[@]}"; do option[$name]=${defaults[$name]}; done
    while [ $# -gt 0 ]; do
        case $1 in
            --help) usage; exit 0 ;;
            --) shift; break ;;
            --*=*) name=${1%%=*} value=${1#*=} ;;
            --*) name=$1 value=yes ;;
            *) break ;;
        esac
        name=${name#--}
        [ -n "${defaults[$name]+there}" ] || {
            fail "--$name is unknown; there are: $(printf -- '--%s ' "${!defaults[@]}")"
        }
        option[$name]=$value
        shift
    done
    command=("$@")
}

# The comment at the top of the script.
usage() { sed -n '2,/^$/{s/^# \{0,1\}//p}' "$0"; }

# need NAME ...: refuses an option that is empty.
need() {
    local name
    for name in "$@"; do [ -n "${option[$name]}" ] || fail "--$name=... is missing"; done
}

need_command() {
    [ ${#command[@]} -gt 0 ] || fail "a flax-adapt command is missing, such as: run --config=..."
}

# Prints the words as one line that a shell reads as the same words.
quoted() {
    local word line=""
    for word in "$@"; do
        case $word in
            '' | *[!a-zA-Z0-9_@%+=:,./-]*) line+=" '${word//\'/\'\\\'\'}'" ;;
            *) line+=" $word" ;;
        esac
    done
    echo "${line# }"
}

# Runs a command; with --dry-run it is printed instead.
act() {
    if [ "${option[dry-run]}" = yes ]; then quoted "$@"; else "$@"; fi
}
