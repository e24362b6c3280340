#!/usr/bin/env bash
# Sets up the environment and passes the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh test
exec python -m pytest "$@"
