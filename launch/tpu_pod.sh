#!/usr/bin/env bash
# Runs a flax-adapt command on all hosts of a Cloud TPU slice, and restarts it until it is done.
#
#   bash launch/tpu_pod.sh --name=pod --zone=us-west4-a --accelerator=v5litepod-16 --spot \
#       --nfs=10.0.0.2:/share run --config=vit_further_pretrain --workdir=/mnt/flax_adapt/x
#
# --name, --zone    of the slice                  --project=P      as gcloud is set up
# --accelerator=A   asks for a queued resource of that type; without it the slice is there
# --runtime=V       its software version          --spot           it may be taken away
# --nfs=HOST:/DIR   mounted at /mnt/flax_adapt: workdir and data, the same for all hosts
# --restarts=10     after a lost host or slice    --poll=30        seconds between two looks
# --delete          deletes the slice at the end  --dry-run        prints the commands
#
# The checkout's last commit is installed on every host. A stop by SIGTERM counts as a restart
# (exit code 75), a mistake in the command (exit code 2) ends all at once. In place of --nfs
# workdir and data may be gs:// addresses; a slice of one host needs neither.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/options.sh"

declare -A defaults=(
    [name]="" [zone]="" [project]="" [accelerator]="" [runtime]=v2-alpha-tpuv5-lite
    [spot]="" [nfs]="" [restarts]=10 [poll]=30 [delete]="" [dry-run]=""
)
read_options "$@"
need name zone
need_command
where=("--zone=${option[zone]}")
if [ -n "${option[project]}" ]; then where+=("--project=${option[project]}"); fi
name=${option[name]}
archive=${TMPDIR:-/tmp}/flax_adapt_$name.tar.gz

queue() { act gcloud compute tpus queued-resources "$@" "${where[@]}"; }
ssh_all() { act gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

# The state of the queued resource: ACTIVE, SUSPENDED, FAILED, ...; "" if there is none.
state() {
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
        --format='value(state.state)' 2>/dev/null || true
}

create() {
    local spot=()
    if [ "${option[spot]}" = yes ]; then spot=(--spot); fi
    queue create "$name" "--node-id=$name" "--accelerator-type=${option[accelerator]}" \
        "--runtime-version=${option[runtime]}" "${spot[@]}"
    if [ "${option[dry-run]}" = yes ]; then
        echo "# every ${option[poll]} s, until the state is ACTIVE:"
        queue describe "$name" "--format=value(state.state)"
        return
    fi
    local now=""
    until [ "$now" = ACTIVE ]; do
        now=$(state)
        case $now in FAILED | SUSPENDED) fail "the queued resource $name is $now" ;; esac
        sleep "${option[poll]}"
    done
}

remove() { queue delete "$name" --force --quiet; }

install() {
    local mount=""
    if [ -n "${option[nfs]}" ]; then
        mount="sudo mkdir -p /mnt/flax_adapt && { mountpoint -q /mnt/flax_adapt || \
sudo mount -t nfs $(quoted "${option[nfs]}") /mnt/flax_adapt; } && "
    fi
    local apt="sudo apt-get update -q && sudo apt-get install -qy nfs-common python3.11 python3.11-venv"
    act git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
    act gcloud compute tpus tpu-vm scp "$archive" "$name:flax_adapt.tar.gz" "${where[@]}" --worker=all
    ssh_all "$apt && ${mount}rm -rf flax_adapt && mkdir flax_adapt && \
tar -xzf flax_adapt.tar.gz -C flax_adapt && \
python3.11 -m venv flax_adapt_venv && flax_adapt_venv/bin/pip install -q './flax_adapt[tpu,gs]'"
}

run() {
    ssh_all "flax_adapt_venv/bin/flax-adapt $(quoted "${command[@]}" --coordinator=auto --stop_code=75)"
}

# Whether the slice that was asked for is gone, as a spot slice is after a preemption.
is_gone() {
    [ -n "${option[accelerator]}" ] && [ "$(state)" != ACTIVE ]
}

if [ -n "${option[accelerator]}" ]; then
    if [ "${option[dry-run]}" = yes ] || [ "$(state)" != ACTIVE ]; then create; fi
fi
install
code=0
run || code=$?
for ((restart = 1; restart <= option[restarts]; restart++)); do
    case $code in 0 | 2) break ;; esac
    echo "tpu_pod.sh: exit code $code; restart $restart of ${option[restarts]}" >&2
    if is_gone; then
        remove
        create
        install
    fi
    code=0
    run || code=$?
done
if [ "${option[dry-run]}" = yes ]; then
    echo "# after exit code 75 or a lost host: the last command again, ${option[restarts]} times;"
    echo "# where the slice is gone: deleted, and all of the above again"
fi
if [ "${option[delete]}" = yes ] && [ -n "${option[accelerator]}" ]; then remove; fi
exit "$code"
