#!/usr/bin/env bash
# Prints the lines of each part of `src`, comments included, beside the part's budget; then the
# files over 300 lines and the functions over 60. A mirror, not a gate: it always succeeds.
#
# Inline tests have a column of their own: `#[cfg(test)] mod …` to the end of the file, and files
# named `*_tests.rs`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck disable=SC2016 # The dollars are awk's.
find src -name '*.rs' -print0 | LC_ALL=C sort -z | xargs -0 awk '
    BEGIN {
        # The parts, in the order of the table.
        count = split("lock lease run store file directory sql aws command cli sys rest", rooms)
        split("1750 570 770 540 780 420 1100 1200 1050 760 400 330", budgets)
        title["directory"] = "directory + memory"; title["sql"] = "sql + postgres + mysql"
        title["aws"] = "aws + object + dynamodb"; title["cli"] = "cli + config"

        # The longest path that matches decides. A path that does not exist is harmless.
        put("lock", "lock record schedule")
        put("lease", "lease")
        put("run", "run")
        put("store", "store store/address store/backoff store/engines store/failure store/key store/network")
        put("store", "store/seam store/waiter")
        put("file", "store/file")
        put("directory", "store/directory")
        put("sql", "store/sql store/postgres store/mysql")
        put("aws", "store/aws store/checks store/dynamodb store/object store/runtime")
        put("command", "command")
        put("cli", "cli config values")
        put("sys", "sys")
        put("rest", "main lib error events exit_code logging usage panics")
    }

    function put(room, paths,    path, i, n) {
        n = split(paths, path, " ")
        for (i = 1; i <= n; i++) room_of[path[i]] = room
    }

    # `lock/acquire.rs` is found by `lock/acquire`, else by `lock`. A file directly in `store`
    # requires a line above: otherwise a new store would count as a part of the seam.
    function find_room(path) {
        sub(/^src\//, "", path); sub(/\.rs$/, "", path); sub(/_tests$/, "", path); sub(/\/mod$/, "", path)
        if (path in room_of) return room_of[path]
        while (sub(/\/[^\/]*$/, "", path)) {
            if (path == "store") return ""
            if (path in room_of) return room_of[path]
        }
        return ""
    }

    function end_of_file() {
        if (file != "" && file_lines > 300) long_files = long_files sprintf("  %5d %s\n", file_lines, file)
    }

    FNR == 1 {
        end_of_file()
        file = FILENAME; file_lines = 0; open = 0; pending = 0
        is_test_file = file ~ /_tests\.rs$/ || file ~ /\/tests\.rs$/; in_tests = is_test_file
        room = find_room(file)
        if (room == "") unknown = unknown "  " file "\n"
    }

    # The attribute counts with its module. `mod tests;` names a file: what follows is not a test.
    !in_tests && /^#\[cfg\(test\)\]/ { pending = 1; held = 0 }
    pending {
        held++
        if (/^(pub(\([a-z]+\))? )?mod [a-z_]+ \{/) { in_tests = 1; pending = 0; tests[room] += held; all_tests += held; next }
        if (/^#\[/) next
        pending = 0; lines[room] += held; all += held; file_lines += held; next
    }

    {
        if (in_tests) { tests[room]++; all_tests++ } else { lines[room]++; all++; file_lines++ }
    }

    # rustfmt closes a function at the column where it has opened it.
    !open && match($0, /^ *(pub(\([a-z]+\))? )?((const|async|unsafe|extern "C") )*fn [A-Za-z_0-9]+/) {
        match($0, /^ */); indent = RLENGTH
        name = $0; sub(/^.*fn /, "", name); sub(/[^A-Za-z_0-9].*$/, "", name)
        start = FNR; open = !/[;}]$/
    }
    open && match($0, /^ *[};]/) && RLENGTH == indent + 1 {
        length_of = FNR - start + 1; open = 0
        if (length_of > 60) long_functions = long_functions sprintf("  %5d %s:%d %s\n", length_of, file, start, name)
    }
    # A method without a body, over several lines.
    open && /;$/ && match($0, /^ *\)/) && RLENGTH == indent + 1 { open = 0 }

    END {
        end_of_file()
        printf "%-24s %7s %7s %7s\n", "", "lines", "budget", "tests"
        for (i = 1; i <= count; i++) {
            room = rooms[i]
            printf "%-24s %7d %7d %7d\n", (room in title) ? title[room] : room, lines[room], budgets[i], tests[room]
            budget += budgets[i]
        }
        if (lines[""] + tests[""]) printf "%-24s %7d %7s %7d\n", "in no room", lines[""], "", tests[""]
        printf "%-24s %7d %7d %7d\n", "total", all, budget, all_tests
        printf "%-24s %7d %7d\n", "total with inline tests", all + all_tests, 11000
        printf "%-24s %7d %7d\n", "stores over networks", lines["store"] + lines["sql"] + lines["aws"], 2900
        if (unknown != "") printf "\nFiles in no room (name them in scripts/lines.sh):\n%s", unknown
        if (long_files != "") printf "\nFiles over 300 lines, inline tests not counted:\n%s", long_files
        if (long_functions != "") printf "\nFunctions over 60 lines:\n%s", long_functions
    }'
