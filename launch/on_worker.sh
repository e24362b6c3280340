#!/usr/bin/env bash
# The commands that a launcher runs on one worker. Next to it are the source, command.sh and environment:
#
#   on_worker.sh setup EXTRAS   find a Python, install the project; does nothing if that is done
#   on_worker.sh start          start command.sh in the background; does nothing if it is running
#   on_worker.sh follow LINE    show the log from a line on until the command ends; exit with its code
#   on_worker.sh status         print one line: running, exited CODE or absent
#   on_worker.sh records DIR    pack a run's directory, without its checkpoints, into records.tgz
#   on_worker.sh stop           send SIGTERM, upon which the run saves; SIGKILL two minutes later
#
# The command keeps running after the connection that started it has ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
verb="${1:-status}"

_alive() { [ -s pid ] && kill -0 -- "-$(cat pid)" 2>/dev/null; }

_python() { # the newest suitable Python; Ubuntu's own package if there is none
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
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
    declare -p PATH >path # `start` finds the installed command with it
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
    # A session of its own: it gets no SIGHUP, and `stop` reaches all of its processes.
    # It ignores SIGTERM, which is for the command, in order to record how that ended.
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
    # The command was started in source/. Files of a running job change while they are read.
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
