#!/usr/bin/env bash
# Pins everything that the images install, with hashes: requirements-{tpu,gpu,cpu}.txt, from
# pyproject.toml. Needs uv (`pip install uv`). Run it after changing dependencies, and to update them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
for kind in tpu gpu cpu; do
    extras=(--extra fast)
    if [ "$kind" != cpu ]; then extras+=(--extra "$kind"); fi
    uv pip compile pyproject.toml "${extras[@]}" --generate-hashes --quiet \
        --python-version 3.11 --python-platform x86_64-manylinux_2_31 \
        --custom-compile-command "launch/docker/lock.sh" \
        --output-file "launch/docker/requirements-$kind.txt"
done
