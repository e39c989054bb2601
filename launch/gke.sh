#!/usr/bin/env bash
# Fills in launch/gke.yaml and applies it: a flax-adapt command on TPU or GPU nodes of a GKE
# cluster that has the JobSet controller.
#
#   bash launch/gke.sh --name=x --image=REGISTRY/flax_adapt:tpu --tpu=tpu-v5-lite-podslice \
#       --topology=4x4 --hosts=4 --chips=4 --claim=shared \
#       run --config=vit_further_pretrain --workdir=/mnt/flax_adapt/x
#   bash launch/gke.sh --name=x --image=REGISTRY/flax_adapt:cuda --gpu=nvidia-h100-80gb \
#       --hosts=2 --chips=8 --claim=shared run ...
#
# --tpu=TYPE --topology=T, or --gpu=TYPE   kind of node    --hosts=1    nodes
# --chips=4      chips or GPUs of a node                   --spot       spot nodes
# --claim=NAME   a volume for many pods (ReadWriteMany), mounted at /mnt/flax_adapt
# --account=A    service account of the pods               --restarts=10
# --dry-run      prints the manifest and how it would be applied

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/options.sh"

declare -A defaults=(
    [name]="" [image]="" [tpu]="" [topology]="" [gpu]="" [hosts]=1 [chips]=4 [spot]=""
    [claim]="" [account]="" [restarts]=10 [dry-run]=""
)
read_options "$@"
need name image
need_command
if [ -n "${option[tpu]}" ]; then
    need topology
    document=1
elif [ -n "${option[gpu]}" ]; then
    document=2
else
    fail "--tpu=TYPE or --gpu=TYPE is missing"
fi
for number in hosts chips restarts; do
    [[ ${option[$number]} =~ ^[0-9]+$ ]] || fail "--$number=${option[$number]} must be a number"
done
[[ ${option[name]} =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    fail "--name=${option[name]} must be a short name of a-z, 0-9 and -"
if [ "${option[hosts]}" -gt 1 ] && [ -z "${option[claim]}" ]; then
    fail "--claim=NAME is missing: ${option[hosts]} hosts share the workdir"
fi

# The words as a JSON list, which YAML reads too.
json() {
    local word list=""
    for word in "$@"; do
        case $word in *$'\n'*) fail "a line break in the command" ;; esac
        word=${word//\\/\\\\}
        list+=", \"${word//\"/\\\"}\""
    done
    echo "[${list#, }]"
}

join=()
if [ "${option[hosts]}" -gt 1 ]; then join=(--coordinator=auto); fi
declare -A value=(
    [NAME]=${option[name]} [RESTARTS]=${option[restarts]} [HOSTS]=${option[hosts]}
    [ACCOUNT]=${option[account]} [ACCELERATOR]=${option[tpu]:-${option[gpu]}}
    [TOPOLOGY]=${option[topology]} [IMAGE]=${option[image]} [CHIPS]=${option[chips]}
    [CLAIM]=${option[claim]} [ARGS]=$(json "${command[@]}" "${join[@]}" --stop_code=75)
)

render() {
    local line name part=1
    while IFS= read -r line; do
        if [ "$line" = --- ]; then part=$((part + 1)); continue; fi
        if [ "$part" != "$document" ]; then continue; fi
        case $line in "#"*) continue ;; esac
        for name in spot claim account; do
            case $line in *" # $name") [ -n "${option[$name]}" ] || continue 2 ;; esac
            line=${line% "# $name"}
        done
        for name in "${!value[@]}"; do
            # Quoted: `&` in a replacement would stand for what was found.
            line=${line//"\${$name}"/"${value[$name]}"}
        done
        echo "$line"
    done <"$root/launch/gke.yaml"
}

manifest=$(render)
if [ "${option[dry-run]}" = yes ]; then
    echo "$manifest"
    echo "# kubectl apply -f -"
else
    kubectl apply -f - <<<"$manifest"
fi
