#!/usr/bin/env bash
# Extracts Debian's Rust into `target/debian-rust`, for targets that rustup cannot fetch: its
# compiler (bin/rustc), the source of its standard library, and musl (bin/musl-gcc). Quick when
# repeated. Installs nothing; requires apt-get, gcc and 900 MB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

toolchain=$PWD/target/debian-rust
mkdir -p "$toolchain"
# A second run at the same time waits, and finds the work done.
exec 9>"$toolchain/lock"
flock 9
[ -e "$toolchain/done" ] && exit

# A new machine has no lists of packages.
apt-cache show rustc-web >/dev/null 2>&1 || [ "$(id -u)" != 0 ] || apt-get update -qq
dependency() { apt-cache depends "$1" | sed -n "s/^ *Depends: \($2.*\)/\1/p" | head -n 1; }
std=$(dependency libstd-rust-web-dev libstd-rust-web-)
llvm=$(dependency "${std:?no package rustc-web: apt-get update}" libllvm)
echo "Extracting ${std#lib} and musl into target/debian-rust …"
rm -rf "${toolchain:?}"/{debs,root,bin,lib}
mkdir -p "$toolchain"/{debs,root,bin,lib}
(cd "$toolchain/debs" && apt-get -qq -o APT::Sandbox::User= download \
    rustc-web libstd-rust-web-dev rust-web-src "$std" "$llvm" musl-dev musl-tools)
for package in "$toolchain"/debs/*.deb; do dpkg-deb -x "$package" "$toolchain/root"; done
rm -r "$toolchain/debs"

libraries=$(dirname "$(echo "$toolchain"/root/usr/lib/*/librustc_driver-*.so)")
cat >"$toolchain/bin/rustc" <<END
#!/bin/sh
LD_LIBRARY_PATH=$libraries exec $toolchain/root/usr/bin/rustc "\$@"
END
# The package contains the paths of an installation; replace them.
sed -E "s#/usr/(lib|include)/[a-z0-9_]+-linux-musl#$toolchain/root&#g" \
    "$toolchain"/root/usr/lib/*-linux-musl/musl-gcc.specs >"$toolchain/lib/musl-gcc.specs"
cat >"$toolchain/bin/musl-gcc" <<END
#!/bin/sh
exec gcc "\$@" -specs $toolchain/lib/musl-gcc.specs
END
chmod +x "$toolchain"/bin/*
# A stand-in for GCC's unwinder, which requires glibc (_dl_find_object). Only backtraces use it, and
# a stripped program has no names for them: a panic aborts.
cat >"$toolchain/lib/unwind.c" <<'END'
int _Unwind_Backtrace(void *trace, void *data) { return 5; }
unsigned long _Unwind_GetIP(void *context) { return 0; }
END
"$toolchain/bin/musl-gcc" -O2 -c "$toolchain/lib/unwind.c" -o "$toolchain/lib/unwind.o"
ar rc "$toolchain/lib/libunwind.a" "$toolchain/lib/unwind.o"
: >"$toolchain/done"
