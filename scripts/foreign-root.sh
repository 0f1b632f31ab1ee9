#!/usr/bin/env bash
# Puts the C library of Debian sid into `target/foreign-root`, with a module for names
# (`myhostname`) that other distributions have by default. tests/stores/foreign_root.rs runs the
# program there: a program linked statically against another glibc dies of signal 11 in a name
# lookup. Puts only a shell into `target/busybox-root`, for scripts/try-wheel.sh. Quick when
# repeated. Installs nothing; requires apt-get, as on Debian.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

root=$PWD/target/foreign-root
mkdir -p "$root.state"
# A second run at the same time waits, and finds the work done.
exec 9>"$root.state/lock"
flock 9
[ -e "$root.state/done" ] && [ -e "$PWD/target/busybox-root/serializer" ] && exit
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "scripts/foreign-root.sh: without apt-get and dpkg-deb, the program is not tried with another C library" >&2
    exit
fi

echo "Extracting the C library of Debian sid into target/foreign-root …"
# An apt of its own, with this system's mirror; the system's lists and packages stay as they are.
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,parts}
# shellcheck disable=SC2016 # apt-get replaces it.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | sort -u | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:?no mirror is set up} sid main" >"$apt/sources.list"
: >"$apt/status"
cat >"$apt/apt.conf" <<END
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/parts";
Dir::Etc::preferences "$apt/none";
Dir::Etc::preferencesparts "$apt/parts";
Acquire::Languages "none";
APT::Sandbox::User "";
END
export APT_CONFIG=$apt/apt.conf
if ! (cd "$apt" && apt-get update && apt-get download libc6 libnss-myhostname libgcc-s1 libcap2 busybox-static) >"$root.state/setup.log" 2>&1; then
    cat "$root.state/setup.log" >&2
    echo "scripts/foreign-root.sh: cannot download the C library of Debian sid" >&2
    exit 1
fi

rm -rf "$root"
mkdir -p "$root"/{etc/ssl,proc}
for package in "$apt"/lib*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --wildcards './usr/lib*'
done
for directory in lib lib64; do
    [ -d "$root/usr/$directory" ] && ln -s "usr/$directory" "$root/$directory"
done
echo 'hosts: files myhostname dns' >"$root/etc/nsswitch.conf"
echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
busybox=$PWD/target/busybox-root
mkdir -p "$busybox/proc" "$busybox/bin"
dpkg-deb --fsys-tarfile "$apt"/busybox-static_*.deb | tar -xO --wildcards './*bin/busybox' >"$busybox/bin/sh"
chmod +x "$busybox/bin/sh"
# The program is mounted over it.
: >"$busybox/serializer"
: >"$root/serializer"
: >"$root.state/done"
