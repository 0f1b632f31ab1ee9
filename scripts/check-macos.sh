#!/usr/bin/env bash
# Checks that the program compiles for macOS, on Debian or with rustup's `*-apple-darwin` targets.
# Links and runs nothing. On Debian, the standard library is checked first, from its source; the
# packages are extracted into target/macos, not installed. The crate `ring` of the stores compiles C
# and assembler: a stand-in compiler writes empty objects.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache=$PWD/target/macos
mkdir -p "$cache"
# A second run at the same time waits, and finds the work done.
exec 9>"$cache/lock"
flock 9

packages=(rustc-web libstd-rust-web-dev rust-web-src)
arguments=(--bin serializer --target-dir "$cache/build")
sysroot=$(rustc --print sysroot)
if [ ! -e "$sysroot/lib/rustlib/aarch64-apple-darwin" ] || [ ! -e "$sysroot/lib/rustlib/x86_64-apple-darwin" ]; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "scripts/check-macos.sh: needs Debian, or \`rustup target add aarch64-apple-darwin x86_64-apple-darwin\`" >&2
        exit 1
    fi
    if [ ! -e "$cache/done" ]; then
        echo "Extracting Debian's Rust into target/macos …"
        rm -rf "$cache/root" "$cache/debs"
        mkdir -p "$cache/root" "$cache/debs"
        # Of their dependencies, only the compiler's library and LLVM may be missing.
        mapfile -t packages < <(
            printf '%s\n' "${packages[@]}"
            apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
                --no-enhances "${packages[@]}" | grep -E '^(libstd-rust-web-[0-9.]+|libllvm[0-9]+)$'
        )
        (cd "$cache/debs" && apt-get -o APT::Sandbox::User= download "${packages[@]}" >/dev/null)
        for package in "$cache"/debs/*.deb; do dpkg-deb -x "$package" "$cache/root"; done
        rm -r "$cache/debs"
        # shellcheck disable=SC2016 # The script expands it.
        printf '#!/bin/sh\nLD_LIBRARY_PATH=$(echo %q/usr/lib/*-linux-gnu) exec %q/usr/bin/rustc "$@"\n' \
            "$cache/root" "$cache/root" >"$cache/rustc"
        chmod +x "$cache/rustc"
        : >"$cache/done"
    fi
    # Only an unstable compiler builds the standard library; this makes it count as one.
    export RUSTC=$cache/rustc RUSTC_BOOTSTRAP=1
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

for target in aarch64-apple-darwin x86_64-apple-darwin; do
    cargo check "${arguments[@]}" --target "$target" "$@"
done
