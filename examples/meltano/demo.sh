#!/usr/bin/env bash
# Two pipelines at once that end in one DuckDB file. Without the mutex, one of them fails at
# DuckDB's lock. With it, one waits for the other and both succeed. Exits with 0 only if both
# happened. DEMO_PROJECT names an existing project.
set -euo pipefail

example=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=$(cd "$example/../.." && pwd)/target/meltano
project=${DEMO_PROJECT-$state/project}
logs=$project/demo

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
    exec "$state/venv/bin/meltano" run "--state-id-suffix=$region" tap-shop target-jsonl "$@" \
        >"$logs/$region.log" 2>&1
}

# Shows the important lines of a growing log, each with its time (UTC), until the writing process
# ends.
follow() {
    local region=$1 pid=$2
    tail -n +1 -f -s 0.1 --pid="$pid" "$logs/$region.log" | sed -unE "
        s/^[^ ]*T([0-9:]{8})[^ ]* \[[a-z]+ *\] /  \1  $region | /
        s/ \| dbt +[0-9:]{8} +/ | dbt          /
        s/ \.{3,} / /
        s/^(.{140}).+/\1…/
        /dbtmutex |START |OK created|dbt +IO Error|PASS=/p"
}

# Runs both pipelines at once; their exit codes are in $north and $south then.
both() {
    local first second followers
    say "" "  $ meltano run --state-id-suffix=north tap-shop target-jsonl $* &"
    say "  $ meltano run --state-id-suffix=south tap-shop target-jsonl $* &" ""
    rm -rf output warehouse.duckdb* "$logs"
    mkdir "$logs"
    touch "$logs"/{north,south}.log
    become_pipeline north "$@" &
    first=$!
    become_pipeline south "$@" &
    second=$!
    follow north $first &
    followers=$!
    follow south $second &
    followers="$followers $!"
    north=0 south=0
    wait "$first" || north=$?
    wait "$second" || south=$?
    # shellcheck disable=SC2086 # two of them
    wait $followers
    say "" "  north: exit code $north, south: exit code $south"
}

# The results of the pipelines.
show_warehouse() {
    say "" "  output/ has $(cat output/orders_*.jsonl | wc -l) orders; warehouse.duckdb has:"
    .meltano/utilities/dbt/venv/bin/python - <<'PYTHON'
import duckdb

warehouse = duckdb.connect("warehouse.duckdb", read_only=True)
for (table,) in warehouse.execute("SELECT table_name FROM information_schema.tables").fetchall():
    (rows,) = warehouse.execute(f"SELECT count(*) FROM {table}").fetchone()
    print(f"  {table}: {rows} rows, such as")
    first = f"SELECT * FROM {table} ORDER BY distance, customer LIMIT 3"
    for row in warehouse.execute(first).fetchall():
        print("   ", *row, sep="  ")
PYTHON
}

fail() {
    tail -n 5 "$logs/north.log" "$logs/south.log" >&2
    say "" "FAILED: $1; the whole logs are $logs/{north,south}.log" >&2
    exit 1
}

[ -n "${DEMO_PROJECT-}" ] || "$example/setup.sh"
cd "$project"

say "" "A shop sells in two regions, north and south. Its orders are made up (tap-shop)." \
    "For each region, a pipeline loads the orders into a file. Then dbt compares all customers" \
    "in one DuckDB file."

say "" "== Without the mutex: two dbt runs, one DuckDB file (times are UTC) =="
for ((round = 1; ; round++)); do
    both dbt:run
    if ((north + south)) && grep -q "Could not set lock on file" "$logs"/{north,south}.log; then
        break
    fi
    ((north + south == 0)) || fail "a pipeline failed of something else than DuckDB's lock"
    ((round < rounds)) || fail "the pipelines have not met in $rounds rounds"
    say "  They have not met; once more."
done

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
show_warehouse

say "" "Without the mutex one pipeline failed; with it one waited for the other, and both succeeded."
