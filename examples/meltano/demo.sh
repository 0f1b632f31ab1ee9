#!/usr/bin/env bash
# Two pipelines at once that end in one DuckDB file. Without the mutex, one of them fails at
# DuckDB's lock. With it, one waits for the other and both succeed. Exits with 0 only if both
# happened.
set -euo pipefail

example=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=$(cd "$example/../.." && pwd)/target/meltano
logs=$state/demo

# How often to start both pipelines until they meet. The machine decides when each of them comes to
# dbt. Mostly the two come within half a second of each other, and each keeps the database open for
# longer than that; but this is not guaranteed.
rounds=4

export MELTANO_SEND_ANONYMOUS_USAGE_STATS=false
export MELTANO_CLI_DISABLE_VERSION_CHECK=true
# A demonstration had better fail than wait for ever.
export SERIALIZER_MAX_ATTEMPTS=300

say() { printf '%s\n' "$@"; }

# Ctrl-C does not reach what a script has started in the background.
trap 'jobs -p | xargs -r kill 2>/dev/null' EXIT

# Becomes one region's pipeline, ending in the given blocks. --state-id-suffix: otherwise Meltano
# itself refuses to run the same extractor and loader twice at a time.
become_pipeline() {
    local region=$1
    shift
    export TAP_SHOP_REGION=$region
    exec "$state/venv/bin/meltano" run "--state-id-suffix=$region" tap-shop target-jsonl "$@" >"$logs/$region.log" 2>&1
}

# Runs both pipelines at once; their exit codes are in $north and $south then.
both() {
    say "" "  $ meltano run --state-id-suffix=north tap-shop target-jsonl $* &"
    say "  $ meltano run --state-id-suffix=south tap-shop target-jsonl $* &"
    rm -rf output warehouse.duckdb*
    become_pipeline north "$@" &
    local first=$!
    become_pipeline south "$@" &
    local second=$!
    north=0 south=0
    wait "$first" || north=$?
    wait "$second" || south=$?
    say "" "  north: exit code $north, south: exit code $south"
}

# Shows the lines of both logs that match, without Meltano's timestamps.
show() {
    local region
    for region in north south; do
        sed -nE "s/^[^ ]+ \[[a-z]+ *\] /  $region | /; /$1/p" "$logs/$region.log"
    done
}

fail() {
    say "" "FAILED: $1; the whole logs are $logs/{north,south}.log" >&2
    exit 1
}

"$example/setup.sh"
mkdir -p "$logs"
cd "$state/project"

say "" "== Without the mutex: two dbt runs, one DuckDB file =="
for ((round = 1; ; round++)); do
    both dbt:run
    if ((north + south)) && grep -q "Could not set lock on file" "$logs"/{north,south}.log; then
        break
    fi
    ((north + south == 0)) || fail "a pipeline failed of something else than DuckDB's lock"
    ((round < rounds)) || fail "the pipelines have not met in $rounds rounds"
    say "  They have not met; once more."
done
show "Could not set lock on file" | head -n 1

say "" "== With the mutex: the second waits until the first has unlocked =="
for ((round = 1; ; round++)); do
    both dbtmutex:lock dbt:run dbtmutex:unlock
    ((north + south == 0)) || fail "a pipeline failed in spite of the mutex"
    if grep -q "waiting for" "$logs"/{north,south}.log; then
        break
    fi
    ((round < rounds)) || fail "the pipelines have not met in $rounds rounds"
    say "  They have not met; once more."
done
show "dbtmutex |PASS="

say "" "Without the mutex one pipeline failed; with it one waited for the other, and both succeeded."
