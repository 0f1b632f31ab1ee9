#!/usr/bin/env bash
# Checks that the program compiles for macOS (or for TARGETS alone), on Debian or with rustup's
# `*-apple-darwin` targets.
# Links and runs nothing. On Debian, the standard library is checked first, from its source. The
# crate `ring` of the stores compiles C and assembler: a stand-in compiler writes empty objects.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache=$PWD/target/macos
mkdir -p "$cache"
# A second run at the same time waits, and finds the work done.
exec 9>"$cache/lock"
flock 9

arguments=(--bin serializer --target-dir "$cache/build")
sysroot=$(rustc --print sysroot)
if [ ! -e "$sysroot/lib/rustlib/aarch64-apple-darwin" ] || [ ! -e "$sysroot/lib/rustlib/x86_64-apple-darwin" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "scripts/check-macos.sh: needs Debian, or \`rustup target add aarch64-apple-darwin x86_64-apple-darwin\`" >&2
        exit 1
    fi
    scripts/debian-rust.sh
    # Only an unstable compiler builds the standard library; this makes it count as one.
    export RUSTC=$PWD/target/debian-rust/bin/rustc RUSTC_BOOTSTRAP=1
    arguments+=(-Zbuild-std)
fi

# Creates the file after `-o`, or the archive.
cat >"$cache/cc" <<'END'
#!/bin/sh
for argument; do
    case $previous:$argument in -o:* | *.a) : >"$argument" ;; esac
    previous=$argument
done
END
chmod +x "$cache/cc"
export TARGET_CC=$cache/cc TARGET_AR=$cache/cc SDKROOT=/ MACOSX_DEPLOYMENT_TARGET=11.0

for target in ${TARGETS:-aarch64-apple-darwin x86_64-apple-darwin}; do
    cargo check "${arguments[@]}" --target "$target" "$@"
done
