#!/usr/bin/env bash
# Sets up the environment and passes the tests, a process a core; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh test
# Each process is given neighboring tests, which share what a session makes once.
exec python -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
