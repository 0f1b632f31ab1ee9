#!/bin/bash
# The first process of the user-mode kernel of bed.sh: an NFS server, two hosts that mount what it exports, and a workload. Not for
# running anywhere else.
set -eu
here=$(dirname "$0")
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/

power_off() {
    echo o >/proc/sysrq-trigger
    sleep 60
}

# Things that are not there at once come in milliseconds, or never.
until_true() {
    for _ in {1..500}; do
        if "$@" 2>/dev/null; then return; fi
        sleep 0.02
    done
    echo "not in 10 s: $*" >&2
    return 1
}

loopback_and_rpcbind() {
    ip link set lo up
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /var/lib/nfs
    mkdir -p /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/v4recovery /run/rpcbind
    touch /var/lib/nfs/{etab,rmtab}
    rpcbind
    until_true test -S /run/rpcbind.sock
}

server() {
    mkdir /run/modules-of /run/modules-of/lib
    ln -s /usr/lib/uml/modules /run/modules-of/lib/modules
    for module in veth nfs nfsv3 nfsv4 nfsd; do modprobe -d /run/modules-of "$module"; done
    mkdir /mnt/export
    mount -t ext4 /dev/ubda /mnt/export
    rmdir /mnt/export/lost+found
    chmod 1777 /mnt/export
    mount -t nfsd nfsd /proc/fs/nfsd
    exportfs -i -o rw,no_root_squash,no_subtree_check,insecure,fsid=0 '*:/mnt/export'
    # Without leases of its files the server delegates none of them.
    [ "${NFS_DELEGATIONS:-yes}" = yes ] || echo 0 >/proc/sys/fs/leases-enable
    rpc.statd --no-notify
    if [ "$NFS_VERSION" = 3 ]; then rpc.nfsd -N 4 4; else rpc.nfsd -N 3 4; fi
    rpc.mountd
    # After a start a server grants no locks for a while, because somebody may have had them. Here, nobody has.
    echo Y >/proc/fs/nfsd/v4_end_grace
    if [ "$NFS_VERSION" = 3 ]; then echo Y >/proc/fs/lockd/nlm_end_grace; fi
}

# host NAME NUMBER: in namespaces of its own.
host() {
    hostname "$1"
    ip address add "10.99.$2.2/24" dev eth0
    ip link set eth0 up
    loopback_and_rpcbind
    printf '%032x\n' "$2" >/run/machine-id
    printf '%08x-0000-4000-8000-000000000000\n' "$2" >/run/boot_id
    mount --bind /run/machine-id /etc/machine-id
    mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
    local options="vers=$NFS_VERSION"
    if [ "$NFS_VERSION" = 3 ]; then
        rpc.statd --no-notify
        until_true mount -t nfs -o "$options" "10.99.$2.1:/mnt/export" /mnt/nfs
    else
        until_true mount -t nfs -o "$options" "10.99.$2.1:/" /mnt/nfs
    fi
    exec python3 -B "$here/agent.py" "/mnt/sockets/$1"
}

all() {
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/outside /mnt/nfs /mnt/sockets /mnt/bin
    mount -t hostfs -o "$NFS_WORK" none /mnt/outside
    # Nothing has to be asked of what is outside while the workload runs.
    cp /mnt/outside/serializer /mnt/bin/serializer
    while IFS= read -r line; do export "${line?}"; done </mnt/outside/environment
    loopback_and_rpcbind
    server
    mkdir /run/netns
    local number=0
    for name in a b; do
        number=$((number + 1))
        ip netns add "$name"
        ip link add "to-$name" type veth peer name eth0 netns "$name"
        ip address add "10.99.$number.1/24" dev "to-$name"
        ip link set "to-$name" up
        nsenter --net="/run/netns/$name" unshare --mount --uts --ipc --pid --fork --mount-proc "$0" host "$name" "$number" &
    done
    until_true test -S /mnt/sockets/a
    until_true test -S /mnt/sockets/b
    local script=workload
    if [ "$NFS_WORKLOAD" = facts ]; then script=facts; fi
    python3 -B "$here/$script.py" >/mnt/outside/results
}

if [ "${1:-}" = host ]; then
    host "$2" "$3"
fi
code=0
# Apart, so that a failure ends it, but not this process.
( all ) & wait $! || code=$?
dmesg | tail -30 >&2
# Only the workload itself says 0 or 1, and it says something.
if [ -s /mnt/outside/results ]; then echo "$code" >/mnt/outside/code; fi
power_off
