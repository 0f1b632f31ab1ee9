#!/usr/bin/env bash
# Builds the wheel of a release, with all stores, in target/wheels: `scripts/wheel.sh [TARGET]`, by
# default for musl on this processor. A program for musl is static, at fixed addresses, and runs on
# every Linux. Requires Rust, Python, a C compiler, and 20 minutes of processor time.
#
# For musl, uses rustup's target and `musl-gcc`, or else Debian's Rust (scripts/debian-rust.sh); for
# another processor (`aarch64-unknown-linux-musl`), scripts/zig.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

triple=${1:-$(uname -m)-unknown-linux-musl}
processor=${triple%%-*}
target=${CARGO_TARGET_DIR:-$PWD/target}
tools=$target/wheel-tools
[ -x "$tools/bin/maturin" ] || {
    python3 -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check 'maturin>=1.9,<2'
}

options=(--release --locked --features full --target "$triple")
if [[ $triple == *-linux-musl ]]; then
    options+=(--compatibility manylinux2014 musllinux_1_1)
    flags='-Crelocation-model=static -Ctarget-feature=+crt-static'
    compiler=musl-gcc
    cargo_target=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$triple")
    if ! rustup target list --installed 2>/dev/null | grep -qx "$triple"; then
        scripts/debian-rust.sh
        compiler=$PWD/target/debian-rust/bin/musl-gcc
        flags="-Clink-self-contained=no $flags"
        if [ "$processor" = "$(uname -m)" ]; then
            flags+=" -L$PWD/target/debian-rust/lib"
        else
            # Zig brings an unwinder of its own.
            scripts/zig.sh "$processor" "$target/zig-$processor"
            compiler=$target/zig-$processor/cc
            emulate=$target/zig-$processor/emulate
            export "AR_${triple//-/_}=$target/zig-$processor/ar"
        fi
        # Builds the standard library, too: it comes as source.
        export RUSTC=$PWD/target/debian-rust/bin/rustc RUSTC_BOOTSTRAP=1
        export CARGO_UNSTABLE_BUILD_STD=std,panic_abort
        export "${cargo_target}_LINKER=$compiler"
    fi
    export "CC_${triple//-/_}=$compiler" "${cargo_target}_RUSTFLAGS=$flags"
fi

rm -rf "${target:?}/wheels"
data=meltano_serializer.data
trap 'rm -rf "$data"' EXIT
build() { "$tools/bin/maturin" build "${options[@]}" --out "$target/wheels"; }
build
# Adds the files that the program generates, in a second wheel; this compiles no code.
scripts/share.sh "$target/$triple/release/serializer" "$data/data/share" "${emulate:-env}"
build
scripts/try-wheel.sh "$target"/wheels/*.whl "${emulate:-env}"
ls -l "$target"/wheels/*.whl
