#!/usr/bin/env bash
# Installs the emulators that tests start as servers into `target/emulators`, with the versions
# below. Quick when repeated.
#   dynalite (npm): DynamoDB on disk, exact under concurrent conditional writes.
#   azurite (npm): Azure Blob Storage, exact under concurrent conditional writes.
#   moto (PyPI): DynamoDB with IAM, and S3; only by tests/support/servers/moto_server.py, which has
#     it answer one request at a time.
#   atomic-execution-control (PyPI): a library that shares a table with `once`; in moto's
#     environment, for its boto3.
#   pytest, mypy (PyPI): test the Python package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

aec=0.1.5
azurite=3.35.0
dynalite=4.0.0
moto=5.2.5
mypy=2.4.1
node=20.20.2
pytest=9.2.0

state=$PWD/target/emulators
mkdir -p "$state"
# A second run at the same time waits, and finds the work done.
exec 9>"$state/lock"
flock 9

# Runs a command that only a failure makes worth reading about.
quietly() {
    if ! "$@" >"$state/setup.log" 2>&1; then
        cat "$state/setup.log" >&2
        echo "scripts/emulators.sh: cannot install the emulators: $*" >&2
        exit 1
    fi
}

# Whether something is there in this version; what is half installed has no such file.
is_there() { [ "$(cat "$state/$1.version" 2>/dev/null)" = "$2" ]; }

npm_package() {
    local name=$1 version=$2
    is_there "$name" "$version" && return
    echo "Installing $name $version from npm into target/emulators/$name …"
    rm -rf "${state:?}/$name" "$state/$name.version"
    quietly npm install --prefix "$state/$name" --no-save --no-audit --no-fund "$name@$version"
    echo "$version" >"$state/$name.version"
}

python_package() {
    local name=$1 version=$2
    shift 2
    is_there "$name" "$version" && return
    echo "Installing $name $version from PyPI into target/emulators/$name …"
    rm -rf "${state:?}/$name" "$state/$name.version"
    quietly "$python" -m venv "$state/$name"
    # uv takes a tenth of pip's time.
    quietly "$state/$name/bin/python" -m pip install --disable-pip-version-check uv
    quietly "$state/$name/bin/uv" pip install --python "$state/$name/bin/python" "$@"
    echo "$version" >"$state/$name.version"
}

# As root, the tests run servers as the user `nobody`, which cannot use a Python in root's home.
python=/usr/bin/python3
"$python" -c 'import ensurepip, venv' 2>/dev/null || python=python3

# Debian 12 has an older one than dynalite needs.
if [ "$(node --print 'process.versions.node.split(".")[0]')" -lt 20 ]; then npm_package node "$node"; fi
npm_package azurite "$azurite"
npm_package dynalite "$dynalite"
python_package moto "$moto" "moto[server,dynamodb,s3,iam]==$moto"
# Goes with moto's environment.
if ! is_there moto/aec "$aec"; then
    quietly "$state/moto/bin/python" -m pip install --disable-pip-version-check --no-deps "atomic-execution-control==$aec"
    echo "$aec" >"$state/moto/aec.version"
fi
python_package pytest "$pytest $mypy" "pytest==$pytest" "mypy==$mypy"
