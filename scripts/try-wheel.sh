#!/usr/bin/env bash
# Tries a wheel in a new venv, and its program, if static, in roots that lack the libraries of the
# build. `scripts/try-wheel.sh WHEEL [EMULATOR]`: of a wheel for another processor, which EMULATOR
# runs, tries only the program, which cannot start others.
set -euo pipefail
wheel=$(realpath "$1")
emulate=${2:-env}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "scripts/try-wheel.sh: $*" >&2 && exit 1; }
tried=$(mktemp -d)
trap 'rm -rf "$tried"' EXIT

python3 -m venv "$tried/venv"
if [ "$emulate" = env ]; then
    "$tried/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index "$wheel"
    "$tried/venv/bin/python" -c 'import meltano_serializer'
else
    python3 -m zipfile -e "$wheel" "$tried"
    mv "$tried"/*.data/data/share "$tried/venv/share"
    install "$tried"/*.data/scripts/serializer "$tried/venv/bin"
fi
for file in man/man1/serializer-schedule-start.1 bash-completion/completions/serializer \
    serializer/dbtmutex.yml; do
    [ -s "$tried/venv/share/$file" ] || fail "the wheel lacks share/$file"
done
program=$tried/venv/bin/serializer

# `try PROGRAM DIRECTORY COMMAND…`: started by COMMAND, the program runs itself under a lock, and
# queries each store on a host that does not exist. This detects a missing store, or a crash in the
# name lookup.
try() {
    local said store code program=$1 dir=$2
    shift 2
    if [ "$emulate" = env ]; then
        said=$("$@" "$program" run --no-wait --dir "$dir" -- "$program" --version 2>&1) ||
            fail "$*: $said"
    else
        said=$("$@" "$program" lock --dir "$dir" 2>&1 && "$@" "$program" unlock --dir "$dir" 2>&1) ||
            fail "$*: $said"
        said=$("$@" "$program" --version)
    fi
    [[ $said == *"serializer "* ]] || fail "$*: $said"
    for store in postgres://u@H/d mysql://u@H/d 'dynamodb://k:s@t?region=r&endpoint=http://H' \
        's3://k:s@b/p?region=r&endpoint=http://H'; do
        code=0
        said=$("$@" "$program" status --store "${store/H/nowhere.invalid:1}" 2>&1) || code=$?
        [[ $code == 1 && $said == *nowhere.invalid* ]] ||
            fail "$*: $store: exit code $code: $said"
    done
}

try "$program" "$tried" "$emulate"
[ "$(uname -s)" = Linux ] || exit 0
readelf --file-header --program-headers "$program" |
    awk '/Type: +EXEC/ { fixed = 1 } /INTERP/ { loaded = 1 } END { exit loaded || !fixed }' ||
    fail "the program is not static, or not at fixed addresses"

[ "$emulate" = env ] || exit 0

# Roots with only the program; with BusyBox; with another C library.
in_root() {
    mkdir -p "$1/proc" && touch "$1/serializer"
    # shellcheck disable=SC2016 # The inner shell expands it.
    try /serializer / unshare -rmn sh -c 'mount --rbind /proc "$1/proc" &&
        mount --bind "$2" "$1/serializer" &&
        root=$1 && shift 2 && exec chroot "$root" "$@"' sh "$1" "$program"
    echo "tried in ${1##*/}"
}
in_root "$tried/nothing"
for root in target/busybox-root target/foreign-root; do
    if [ -e "$root/serializer" ]; then in_root "$PWD/$root"; else echo "not tried in $root: missing"; fi
done
