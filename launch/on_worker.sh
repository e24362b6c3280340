#!/usr/bin/env bash
# What a launcher asks of one worker; it lies beside the shipped source, command.sh and environment:
#
#   on_worker.sh setup EXTRAS   finds a Python, installs the project; nothing where that is done
#   on_worker.sh start          begins command.sh in the background; nothing where it runs already
#   on_worker.sh follow LINE    shows the log from a line on until the command ends; its exit code
#   on_worker.sh status         one line: running, exited CODE or absent
#   on_worker.sh records DIR    packs a run's directory, but for its checkpoints, into records.tgz
#   on_worker.sh stop           SIGTERM, which makes the run save; SIGKILL two minutes later
#
# The command outlives the connection that started it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
verb="${1:-status}"

_alive() { [ -s pid ] && kill -0 -- "-$(cat pid)" 2>/dev/null; }

_python() { # the newest Python that will do; Ubuntu's own package where there is none
    local each
    for each in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        if [ -n "$each" ] && "$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$each"
            return
        fi
    done
    sudo apt-get update -qq >&2
    sudo DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3.11 python3.11-venv >&2
    echo python3.11
}

_setup() {
    PYTHON="$(_python)"
    if ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("pip") is None)'; then
        [ -x python/bin/python ] || "$PYTHON" -m venv python
        PYTHON="$PWD/python/bin/python"
    fi
    export PYTHON
    # shellcheck source=launch/environment.sh
    . source/launch/environment.sh "$1"
    declare -p PATH >path # what `start` finds the installed command by
    if [ -s mounts ]; then _mount; fi
}

_mount() { # buckets as folders, the same on every worker
    local bucket folder
    if ! command -v gcsfuse >/dev/null; then
        echo "gcsfuse is not installed on this image: see docs/launch/tpu_vm.md, 'Storage'" >&2
        exit 3
    fi
    while IFS=$'\t' read -r bucket folder; do
        mountpoint -q "$folder" && continue
        sudo mkdir -p "$folder"
        sudo chown "$(id -u):$(id -g)" "$folder"
        gcsfuse --implicit-dirs "$bucket" "$folder"
    done <mounts
}

_start() {
    if _alive; then
        echo "already running"
        return
    fi
    rm -f exit
    T5X_LITE_REVISION="$(cat REVISION)"
    export T5X_LITE_REVISION
    # A session of its own: no hang-up reaches it, and `stop` reaches all of its processes.
    # It outlives SIGTERM, which is for the command, to note how that ended.
    # shellcheck disable=SC2016 # $? is for the inner shell
    setsid bash -c '
        trap : TERM
        . ./path; . ./environment
        (cd source && exec bash ../command.sh)
        echo "$?" >exit.new && mv exit.new exit
    ' >>log 2>&1 </dev/null &
    echo "$!" >pid
}

_follow() {
    touch log
    tail -n "+$1" --pid="$(cat pid)" -s "${T5X_LITE_TAIL:-1}" -f log
    exit "$(cat exit 2>/dev/null || echo 137)" # no exit code: it was killed
}

_status() {
    local state=absent
    if _alive; then
        state=running
    elif [ -s exit ]; then
        state="exited $(cat exit)"
    elif [ -s pid ]; then
        state="exited 137"
    fi
    echo "worker $(hostname): $state"
}

_records() {
    # The command began in source/; files of a run that goes on change while they are read.
    (cd source && tar -czf ../records.tgz --warning=no-file-changed \
        --exclude='./checkpoints*' -C "$1" .) || [ "$?" -eq 1 ]
}

_stop() {
    _alive || return 0
    kill -TERM -- "-$(cat pid)"
    for _ in $(seq "${T5X_LITE_GRACE:-120}"); do
        _alive || return 0
        sleep 1
    done
    kill -KILL -- "-$(cat pid)" 2>/dev/null || true
}

case "$verb" in
setup) _setup "${2:-}" ;;
start) _start ;;
follow) _follow "${2:-1}" ;;
status) _status ;;
records) _records "$2" ;;
stop) _stop ;;
*)
    echo "on_worker.sh: no verb '$verb'" >&2
    exit 2
    ;;
esac
