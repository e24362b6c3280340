#!/usr/bin/env bash
# Sets up the environment and runs the tests, one process per core; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh test
# Each process gets neighboring tests, which share the session fixtures.
exec python -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
