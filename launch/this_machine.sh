#!/usr/bin/env bash
# The main job, on this machine's CPU: sets up the environment and pretrains a tiny T5 1.1 on several
# tasks. Run it again to resume the run, or to see its results. Arguments go to `t5x_lite train`:
#
#   launch/this_machine.sh --gin.TRAIN_STEPS=1200
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh
run=(--gin_file=recipes/tiny_embedded.gin --gin.MODEL_DIR=runs/tiny "$@")
t5x_lite doctor "${run[@]}"
exec t5x_lite train "${run[@]}"
