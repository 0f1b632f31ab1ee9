#!/usr/bin/env bash
# Sets up the example under `target/meltano`: Meltano, a copy of this project and its plugins, with
# the mutex built from this checkout. Quick when repeated. `demo.sh` and the tests
# (tests/meltano/main.rs) use the result.
set -euo pipefail

example=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$example/../.." && pwd)
state=$checkout/target/meltano
project=$state/project

export MELTANO_SEND_ANONYMOUS_USAGE_STATS=false
# Without internet access, Meltano's check for a newer version costs seconds at each start.
export MELTANO_CLI_DISABLE_VERSION_CHECK=true

say() { printf '%s\n' "$*"; }

# Runs a command that only a failure makes worth reading about.
quietly() {
    if ! "$@" >"$state/setup.log" 2>&1; then
        cat "$state/setup.log" >&2
        say "setup failed: $*" >&2
        exit 1
    fi
}

mkdir -p "$project"

if ! "$state/venv/bin/meltano" --version >/dev/null 2>&1; then
    say "Installing Meltano from PyPI into target/meltano/venv …"
    quietly python3 -m venv --clear "$state/venv"
    # uv takes a tenth of pip's time.
    quietly "$state/venv/bin/python" -m pip install --disable-pip-version-check uv
    quietly "$state/venv/bin/uv" pip install --python "$state/venv/bin/python" 'meltano~=4.4.0'
fi

# A copy, because running leaves databases and logs in a project.
rm -rf "$project/transform"
cp -R "$example/meltano.yml" "$example/tap-shop" "$example/transform" "$project/"
# Meltano splits what it finds at spaces, so that the path is quoted for it, too.
printf 'SERIALIZER_PIP_URL="%s"\n' "'$checkout'" >"$project/.env"

cd "$project"
if ! cmp -s meltano.yml "$state/installed.yml"; then
    say "Installing the plugins into target/meltano/project/.meltano (dbt is big) …"
    quietly "$state/venv/bin/meltano" install
    cp meltano.yml "$state/installed.yml"
else
    # The other plugins are installed; this checkout may have changed.
    quietly "$state/venv/bin/meltano" install --plugin-type=utility dbtmutex
fi
say "Set up: $("$state/venv/bin/meltano" --version), $(.meltano/utilities/dbtmutex/venv/bin/serializer --version)"
