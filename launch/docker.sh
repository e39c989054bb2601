#!/usr/bin/env bash
# Builds the image of launch/Dockerfile from the checkout's last commit.
#
#   bash launch/docker.sh --hardware=tpu --tag=REGISTRY/flax_adapt:tpu --push
#   docker run --rm --gpus=all -v "$PWD/runs:/workspace/runs" flax_adapt:cuda run --config=...
#
# --hardware=cpu|cuda|tpu   --tag=flax_adapt:HARDWARE   --push   --dry-run

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/options.sh"

declare -A defaults=([hardware]=cpu [tag]="" [push]="" [dry-run]="")
read_options "$@"
case ${option[hardware]} in
    cpu | cuda | tpu) ;;
    *) fail "--hardware=${option[hardware]} must be cpu, cuda or tpu" ;;
esac
if [ ${#command[@]} -gt 0 ]; then fail "${command[*]} is no option; see --help"; fi
tag=${option[tag]:-flax_adapt:${option[hardware]}}
archive=(git -C "$root" archive HEAD)
build=(docker build -f launch/Dockerfile --build-arg "HARDWARE=${option[hardware]}" -t "$tag" -)
if [ "${option[dry-run]}" = yes ]; then
    echo "$(quoted "${archive[@]}") | $(quoted "${build[@]}")"
else
    "${archive[@]}" | "${build[@]}"
fi
if [ "${option[push]}" = yes ]; then act docker push "$tag"; fi
