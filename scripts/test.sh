#!/usr/bin/env bash
# Sets up what the tests need, and runs them all. On Debian it installs missing packages (as root, or by sudo); elsewhere it says
# what is missing. Needs Rust with rustfmt and clippy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A package for each command that a test runs.
declare -A package_of=(
    [cc]=gcc [git]=git [python3]=python3 [strace]=strace [unshare]=util-linux [setpriv]=util-linux [flock]=util-linux
    [script]=bsdutils [pgrep]=procps [mount]=mount [shellcheck]=shellcheck
    [node]=nodejs [npm]=npm [make]=make [jq]=jq [nsenter]=util-linux [openssl]=openssl [psql]=postgresql-client [mariadb]=mariadb-client
    [mariadb-install-db]=mariadb-server [taskset]=util-linux [strip]=binutils [linux.uml]=user-mode-linux
    [sshfs]=sshfs
)
missing=()
for command in "${!package_of[@]}"; do
    command -v "$command" >/dev/null || missing+=("${package_of[$command]}")
done
# Debian's Python comes without the means to make a virtual environment.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
# Servers are not on everybody's PATH, and PostgreSQL's is not on anybody's. The tests start their own ones, whatever else runs.
declare -A server_package_of=(
    [postgres]=postgresql [initdb]=postgresql [mariadbd]=mariadb-server [pgbouncer]=pgbouncer [ip]=iproute2
    [modprobe]=kmod [rpcbind]=rpcbind [rpc.nfsd]=nfs-kernel-server [mount.nfs]=nfs-common [mkfs.ext4]=e2fsprogs
)
for command in "${!server_package_of[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin:$(printf '%s:' /usr/lib/postgresql/*/bin)" command -v "$command" >/dev/null ||
        missing+=("${server_package_of[$command]}")
done
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(libfaketime)
[ -e /usr/lib/openssh/sftp-server ] || missing+=(openssh-sftp-server)
[ -e "$(cc -print-file-name=libc.a 2>/dev/null)" ] || missing+=(libc6-dev)

if ((${#missing[@]})); then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    if ! command -v apt-get >/dev/null; then
        echo "scripts/test.sh: install what these Debian packages have: ${missing[*]}" >&2
        exit 1
    fi
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
fi

cargo fmt --check
cargo clippy --all-targets -- -D warnings
cargo clippy --all-targets --all-features -- -D warnings
RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --quiet --all-features
shellcheck scripts/*.sh examples/meltano/*.sh tests/nfs/*.sh

# Stores that only others have.
scripts/emulators.sh

# Another C library, for tests/foreign_root.rs.
scripts/foreign-root.sh

# Meltano with the example project, which tests/meltano.rs runs.
examples/meltano/setup.sh

results=$(mktemp)
trap 'rm -f "$results"' EXIT
# The small build, and then everything with all stores.
cargo test --no-fail-fast --test small_build | tee "$results"
cargo test --no-fail-fast --all-features --lib --tests | tee -a "$results"
# One line for all test programs, each of which has counted its own.
awk '/^test result:/ { passed += $4; failed += $6 } /^SKIPPED: / { skipped++ }
    END { printf "%d passed (of which %d could not run here), %d failed\n", passed, skipped, failed }' "$results"
