#!/usr/bin/env bash
# Runs a workload on two hosts that have mounted one directory of an NFS server. All three are network namespaces of a kernel
# that runs as an ordinary process (User Mode Linux), so that it works for everybody, whatever the kernel below can do.
#
#     bed.sh PROGRAM        PROGRAM is the `serializer` to test
#
# In its environment:
#     NFS_VERSION               3 or 4.2 (the default)
#     NFS_WORKLOAD              `exclusion` (the default), `takeover`, `lease` or `facts`: see workload.py and facts.py
#     NFS_LOCKER                `serializer` (the default), or `naive`, which does not exclude
#     NFS_QUEUE                 `none`: there is no order among those who wait
#     NFS_HOLDS                 how often each of four processes holds the lock (100)
#     NFS_DELEGATIONS           `no`: as on servers that delegate no files to clients, such as Amazon EFS
#     NFS_TOLERATED             a message after which the program is asked again
#     NFS_SECONDS               after so long the whole is given up (80)
#     SERIALIZER_…              as for the program; `/mnt/nfs` is the shared directory, and the default of `SERIALIZER_DIR`
# Prints what was found out, and ends with 0 if all is well, with 1 if it is not, and with 2 if it could not be run.
set -euo pipefail

cannot() {
    echo "bed.sh: $*" >&2
    exit 2
}

(($# == 1)) || cannot "name the program to test"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=$(realpath "$1")
export PATH="$PATH:/usr/sbin:/sbin"
for command in mkfs.ext4 linux.uml cc strip unshare taskset timeout modprobe ip rpcbind rpc.statd rpc.mountd rpc.nfsd exportfs mount.nfs python3; do
    command -v "$command" >/dev/null || cannot "there is no \`$command\`; scripts/test.sh installs what is needed"
done

export NFS_VERSION="${NFS_VERSION:-4.2}" NFS_WORKLOAD="${NFS_WORKLOAD:-exclusion}" NFS_LOCKER="${NFS_LOCKER:-serializer}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc -shared -fPIC -O1 -o "$work/xstate.so" "$here/xstate.c" || cannot "cannot compile xstate.c"
strip -o "$work/serializer" "$program" || cannot "cannot strip the program"
env | grep -E '^(SERIALIZER_[A-Z_]+|NFS_[A-Z_]+)=' >"$work/environment" || true

# Each page fault in there is a conversation between two processes here. On two processors, one of which is busy, it takes ten times as
# long. The first processor that no other bed has; this one has it until it ends.
for processor in $(python3 -c 'import os; print(*os.sched_getaffinity(0))'); do
    exec 8<"/sys/devices/system/cpu/cpu$processor"
    if flock -n 8; then break; fi
done

# A namespace of PIDs, so that nothing of it goes on, however it ends. Its memory is a file, for which /dev/shm may be too small. `ro` keeps
# what is outside safe from what is inside, where programs that root has made set-user-id seem to be somebody else's.
mkdir "$work/memory"
truncate -s 64M "$work/disk"
mkfs.ext4 -q "$work/disk"
code=0
# shellcheck disable=SC2016
timeout -k 5 "${NFS_SECONDS:-80}" unshare --user --map-root-user --mount --pid --fork --kill-child \
    bash -c 'mount -t tmpfs tmpfs "$0/memory" && "$@"; exit' "$work" \
    taskset -c "$processor" env LD_PRELOAD="$work/xstate.so" TMPDIR="$work/memory" \
    linux.uml mem=512M root=/dev/root rootfstype=hostfs rootflags=/ ro quiet uml_dir="$work" umid=bed con=null con0=null,fd:1 \
    init=/usr/bin/setpriv ubd0="$work/disk" NFS_WORK="$work" -- --no-new-privs "$here/init.sh" </dev/null >"$work/console" 2>&1 || code=$?

if [ ! -s "$work/code" ]; then
    cat "$work/results" "$work/console" >&2 || true
    cannot "the user-mode kernel did not do its work, and ended with $code (124: it took more than ${NFS_SECONDS:-80} s)"
fi
cat "$work/results"
result=$(cat "$work/code")
[ "$result" = 0 ] || cat "$work/console" >&2
exit "$result"
