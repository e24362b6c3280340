# shellcheck shell=bash
# Sourced by the scripts that need the installed project: creates .venv beside pyproject.toml, once, and
# activates it. Usage: `. launch/environment.sh [EXTRAS]`, EXTRAS as in pyproject.toml: "test,lint".
#
# Works without Debian's python3-venv package: pip can install into another environment.

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
environment="${T5X_LITE_VENV:-$project/.venv}"
extras="${1:-}"

_fingerprint() {
    { cat "$project/pyproject.toml"; "$python" --version; } | cksum | cut -d ' ' -f 1
}

_install() {
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "t5x_lite needs Python 3.11 or later; $python is $("$python" --version). Set PYTHON." >&2
        return 1
    fi
    echo "setting up $environment (once; some minutes and about 3 GB) ..."
    [ -x "$environment/bin/python" ] || "$python" -m venv --without-pip "$environment" || return 1
    "$python" -m pip --python "$environment/bin/python" install --quiet \
        --disable-pip-version-check --editable "$project${extras:+[$extras]}" || return 1
}

stamp="$environment/.installed-$(_fingerprint)${extras:+-$extras}"
if [ ! -e "$stamp" ]; then
    _install || return 1
    touch "$stamp"
fi
export PATH="$environment/bin:$PATH"
