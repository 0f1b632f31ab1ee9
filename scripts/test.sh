#!/usr/bin/env bash
# Sets up the requirements of the tests, and runs them all. `--quick` omits tests that need a server
# or Meltano: formatting, clippy, and the tests of one host remain. On Debian it installs missing
# packages (as root, or by sudo); elsewhere it prints their names. Requires Rust with rustfmt and
# clippy. `SERIALIZER_TEST_FACTOR=20` repeats races twenty times as often.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Background jobs of a shell ignore these signals, and so would all processes of the tests.
if [ "${1-}" != --signals-are-default ]; then
    exec env --default-signal=INT,QUIT bash scripts/test.sh --signals-are-default "$@"
fi
shift
case $* in
'') quick='' steps=4 ;;
--quick) quick=1 steps=4 ;;
*) echo "usage: scripts/test.sh [--quick]" >&2 && exit 2 ;;
esac

logs=$PWD/target/test-logs
rm -rf "$logs"
mkdir -p "$logs"
step=0
failed_steps=()

say() { printf '%s\n' "$*"; }

# Prints the next step, and how long it takes on two idle processors.
announce() {
    step=$((step + 1))
    say "── step $step of $steps: $*"
}

# At the end, prints the failures, and one line with the sums of all test programs.
finish() {
    local code=$? results
    trap - EXIT
    # Ends the background jobs that still run.
    jobs -rp | xargs --no-run-if-empty kill 2>/dev/null || true
    ((code == 0)) || ((${#failed_steps[@]})) || failed_steps=("step $step")
    for name in "${failed_steps[@]}"; do say "failed: $name"; done
    results=$(cat "$logs"/test-*.log 2>/dev/null || true)
    awk -v steps="${#failed_steps[@]}" '
        /^test result:/ { passed += $4; failed += $6; ignored += $8 } /^SKIPPED: / { skipped++ }
        # One test runs these (tests/stores/python.rs).
        /^PYTEST: / { passed += $2 - 1 }
        END {
            if (skipped) printf "of those that passed, %d could not run here (SKIPPED in target/test-logs)\n", skipped
            # A step that fails without a test that does, such as the compiler, counts as one.
            if (steps && !failed) failed = steps
            printf "%d passed, %d failed\n", passed, failed
        }' <<<"$results"
    ((${#failed_steps[@]} == 0)) || exit 1
}
trap finish EXIT
trap 'exit 130' INT TERM

# Runs a step that says nothing unless it fails, to its log.
quietly() {
    local name=$1 started=$SECONDS
    shift
    if "$@" >"$logs/$name.log" 2>&1; then
        say "   $name: done in $((SECONDS - started)) s"
    else
        cat "$logs/$name.log"
        say "   $name: failed after $((SECONDS - started)) s"
        return 1
    fi
}

# Runs a test program, or some of its tests (`PROGRAM-SOME`, selected by the arguments): THREADS at
# a time. A hanging test program is ended after 20 minutes; repeated races take longer.
tests() {
    local name=$1 threads=$2 started=$SECONDS code=0 log=$logs/test-$1.log
    shift 2
    RUST_TEST_THREADS=$threads timeout --foreground "$((20 * ${SERIALIZER_TEST_FACTOR:-1}))m" "${program_of[${name%%-*}]}" "$@" \
        >"$log" 2>&1 || code=$?
    ((code == 0)) || sed -n '/^failures:$/,$p' "$log"
    # libtest names the hanging tests; if they run one by one, in the last line.
    ((code != 124)) || grep 'has been running for over' "$log" || tail -n 3 "$log"
    # A program that is killed has no result.
    grep -q '^test result:' "$log" || say "test result: FAILED. 0 passed; 1 failed; 0 ignored" | tee -a "$log"
    say "   $name: $(sed -n 's/^test result: [A-Za-z]*\. \(.*\) failed;.*/\1 failed/p' "$log") in $((SECONDS - started)) s"
    return "$code"
}

# Waits for background jobs, which are pairs of a name and a PID.
await() {
    while (($#)); do
        wait "$2" || failed_steps+=("$1")
        shift 2
    done
}

announce "packages (nothing to do, or a minute or two)"
# A package for each command that a test runs.
declare -A package_of=(
    [cc]=gcc [git]=git [python3]=python3 [strace]=strace [unshare]=util-linux [setpriv]=util-linux [flock]=util-linux
    [script]=bsdutils [pgrep]=procps [mount]=mount [shellcheck]=shellcheck [make]=make [jq]=jq [nsenter]=util-linux
    [sshfs]=sshfs [taskset]=util-linux
)
# The PATH may lack servers; on Debian it lacks PostgreSQL's. The tests start their own servers,
# whatever else runs.
declare -A server_package_of=(
    [node]=nodejs [npm]=npm [openssl]=openssl [strip]=binutils [linux.uml]=user-mode-linux
    [psql]=postgresql-client [postgres]=postgresql [initdb]=postgresql [pgbouncer]=pgbouncer
    [mariadb]=mariadb-client [mariadbd]=mariadb-server [mariadb-install-db]=mariadb-server
    [cron]=cron [ip]=iproute2 [modprobe]=kmod [mkfs.ext4]=e2fsprogs
    [rpcbind]=rpcbind [rpc.nfsd]=nfs-kernel-server [mount.nfs]=nfs-common
)
missing=()
for command in "${!package_of[@]}"; do
    command -v "$command" >/dev/null || missing+=("${package_of[$command]}")
done
[ -e /usr/lib/openssh/sftp-server ] || missing+=(openssh-sftp-server)
[ -e "$(cc -print-file-name=libc.a 2>/dev/null)" ] || missing+=(libc6-dev)
if [ ! "$quick" ]; then
    # Debian's Python comes without the means to make a virtual environment.
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
    for command in "${!server_package_of[@]}"; do
        PATH="$PATH:/usr/sbin:/sbin:$(printf '%s:' /usr/lib/postgresql/*/bin)" command -v "$command" >/dev/null ||
            missing+=("${server_package_of[$command]}")
    done
    compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(libfaketime)
fi
if ((${#missing[@]})); then
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    say "   missing packages: ${missing[*]}"
    command -v apt-get >/dev/null || { say "   install what these Debian packages have" && exit 1; }
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    # On a terminal, apt-get asks: some of these are servers, which Debian starts.
    yes=(-y)
    [ ! -t 0 ] || yes=()
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install "${yes[@]}" -qq --no-install-recommends "${missing[@]}"
fi

announce "formatting and shell scripts (seconds)"
quietly fmt cargo fmt --check || failed_steps+=(fmt)
quietly shellcheck shellcheck scripts/*.sh examples/meltano/*.sh tests/alone/nfs/*.sh || failed_steps+=(shellcheck)

if [ "$quick" ]; then
    announce "the test programs, by clippy (a minute; four minutes at first)"
else
    announce "the test programs, by clippy, with emulators and Meltano (a minute; five minutes at first)"
    # These mostly wait for the network.
    quietly emulators scripts/emulators.sh &
    setting_up=(emulators $!)
    # Meltano's build shares compiled libraries with the test programs, and replaces none of them.
    quietly meltano env MATURIN_PEP517_ARGS='--profile dev' CARGO_BUILD_BUILD_DIR="$PWD/target" \
        CARGO_TARGET_DIR="$PWD/target/meltano/build" examples/meltano/setup.sh &
    setting_up+=(meltano $!)
    quietly foreign-root scripts/foreign-root.sh &
    setting_up+=(foreign-root $!)
fi
declare -A program_of
# `cargo clippy` sets these to make clippy the compiler. Here it also writes programs: all is
# compiled once.
by_clippy=(env CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__ RUSTC_WORKSPACE_WRAPPER=clippy-driver)
build() {
    "${by_clippy[@]}" cargo test --all-features --test '*' --bench '*' --no-run --message-format=json-render-diagnostics \
        >"$logs/programs.json"
}
quietly build build || { failed_steps+=("the compiler") && exit 1; }
while read -r name program; do program_of[$name]=$program; done < <(jq -r \
    'select(.target.kind[0] == "test" and .executable) | "\(.target.name) \(.executable)"' \
    "$logs/programs.json")

# Without the stores, other code is unused.
lint() { quietly clippy-without-stores nice -n 10 cargo clippy -- -D warnings; }
# Each kind of Mac takes two minutes of a processor; no code differs between them.
macos() { quietly macos nice -n 10 env TARGETS=aarch64-apple-darwin scripts/check-macos.sh; }
# Lints the program without the stores, where other code is unused, with the implementation for
# macOS, and tests locking with that, on Linux.
portable() (
    renice -n 10 "$BASHPID" >"$logs/renice.log"
    # `--cfg` is for this crate alone, which shares the libraries of the other builds.
    quietly build-portable "${by_clippy[@]}" CARGO_BUILD_BUILD_DIR=target CARGO_TARGET_DIR=target/portable \
        CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__--cfg__CLIPPY_HACKERY__serializer_portable__CLIPPY_HACKERY__ \
        cargo test --test local --no-run --message-format=json-render-diagnostics || return
    program_of[portable]=$(grep '^{' "$logs/build-portable.log" |
        jq -r 'select(.profile.test and .executable) | .executable')
    SERIALIZER_TEST_PORTABLE=1 tests portable 2 verdicts:: takeover:: mutual_exclusion:: wait_and_break:: run:: once::
)
document() { quietly doc nice -n 10 "${by_clippy[@]}" RUSTDOC="$PWD/scripts/rustdoc.sh" cargo test --all-features --doc; }

if [ "$quick" ]; then
    announce "clippy without the stores, and the tests of one host (two minutes)"
    lint &
    running=(clippy $!)
    tests local 4 &
    await "${running[@]}" local $!
    exit 0
fi

await "${setting_up[@]}"
# These tests of the stores compute; the others wait for leases and servers.
busy=(contract::of::programs contract::of::register counting no_count_is_lost directory_crash_points)

announce "the documentation, macOS and all tests (ten minutes)"
# One after another, beside the tests, which mostly wait.
beside() {
    local code=0
    for part in portable document macos; do "$part" || code=$?; done
    return "$code"
}
beside &
running=("the documentation, or what is for macOS" $!)
# Three lanes of about the same length, each of which goes on after a failure. The kernels of NFS's
# hosts have a processor each: two at a time. The other tests of that program run alone.
of_one_host() {
    local code=0
    tests alone-others 1 --skip nfs:: || code=$?
    tests local 3 || code=$?
    return "$code"
}
waiting() {
    local code=0
    tests stores-waiting 8 "${busy[@]/#/--skip=}" || code=$?
    tests meltano 2 || code=$?
    return "$code"
}
computing() {
    local code=0
    tests alone-nfs 2 nfs:: || code=$?
    tests stores-busy 4 "${busy[@]}" || code=$?
    return "$code"
}
of_one_host &
running+=("the tests of one host, or that are alone" $!)
waiting &
running+=("the tests of stores that wait, or of Meltano" $!)
computing &
running+=("the tests over NFS, or of stores that compute" $!)
await "${running[@]}"
