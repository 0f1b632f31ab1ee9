#!/usr/bin/env bash
# Makes `cc` and `ar` for Linux with musl on another PROCESSOR, and `emulate`, which runs such a
# program, in DIRECTORY: `scripts/zig.sh PROCESSOR DIRECTORY`. Uses Zig from PyPI, and QEMU from
# Debian's package `qemu-user-static`.
set -euo pipefail

processor=$1 directory=$2
emulator=$(command -v "qemu-$processor-static") || {
    echo "scripts/zig.sh: needs qemu-$processor-static: install qemu-user-static" >&2
    exit 1
}
python3 -m venv "$directory"
"$directory/bin/python" -m pip install --quiet --disable-pip-version-check 'ziglang>=0.15'
# Crates name the target to a compiler like Clang, in words that Zig does not know.
cat >"$directory/cc" <<END
#!/bin/sh
for argument; do
    shift
    case \$argument in --target=*) ;; *) set -- "\$@" "\$argument" ;; esac
done
exec $directory/bin/python -m ziglang cc -target $processor-linux-musl "\$@"
END
printf '#!/bin/sh\nexec %s -m ziglang ar "$@"\n' "$directory/bin/python" >"$directory/ar"
printf '#!/bin/sh\nexec %s "$@"\n' "$emulator" >"$directory/emulate"
chmod +x "$directory"/{cc,ar,emulate}
