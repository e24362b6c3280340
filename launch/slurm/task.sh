#!/usr/bin/env bash
# One process of a Slurm job: sets its number and its GPU, then runs `doctor` and the command.
set -euo pipefail
export JAX_NUM_PROCESSES="$SLURM_NTASKS" JAX_PROCESS_ID="$SLURM_PROCID"

# Slurm gives every process all GPUs of its node; with several processes each uses one of them.
per_node=$((SLURM_NTASKS / SLURM_NNODES))
if [ "$per_node" -gt 1 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -r -a devices <<<"$CUDA_VISIBLE_DEVICES"
    if [ "${#devices[@]}" -gt 1 ]; then
        if [ "${#devices[@]}" -ne "$per_node" ]; then
            echo "$per_node processes on a node with ${#devices[@]} GPUs: expected one process, or one per GPU" >&2
            exit 2
        fi
        export CUDA_VISIBLE_DEVICES="${devices[$SLURM_LOCALID]}"
    fi
fi
if [ "$1" = train ]; then
    t5x_lite doctor "${@:2}"
fi
exec t5x_lite "$@"
