#!/usr/bin/env bash
# Builds the wheel that is released, into target/wheels: with all stores. It runs
# on every Linux with this glibc or a newer one. Needs Rust and Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
tools=$target/wheel-tools
[ -x "$tools/bin/maturin" ] || {
    python3 -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check 'maturin>=1.9,<2'
}
rm -rf "${target:?}/wheels"
"$tools/bin/maturin" build --release --locked --features full --compatibility linux --out "$target/wheels"

# What is released is tried once, as `pip` installs it: it knows all stores.
tried=$(mktemp -d)
trap 'rm -rf "$tried"' EXIT
python3 -m venv "$tried/venv"
"$tried/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index "$target"/wheels/*.whl
for store in postgres://u@127.0.0.1:1/d mysql://u@127.0.0.1:1/d 'dynamodb://t?region=r&endpoint=http://127.0.0.1:1' 's3://k:s@b/p?endpoint=http://127.0.0.1:1'; do
    # No server listens there, but only a request shows that.
    said=$("$tried/venv/bin/serializer" lock --no-wait --owner-pid $$ --store "$store" 2>&1 || true)
    case $said in
    *"built without"* | "") echo "scripts/wheel.sh: the wheel does not know $store: $said" >&2 && exit 1 ;;
    esac
done
ls -l "$target"/wheels/*.whl
