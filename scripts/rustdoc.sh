#!/usr/bin/env bash
# Stands in for rustdoc where cargo would have it test examples: writes the documentation instead,
# with the libraries of the test programs. For `cargo doc`, all of them are compiled once more.
set -euo pipefail

arguments=()
while (($#)); do
    case $1 in
    --test) ;;
    # What only tests have.
    --test-*) [[ $1 == *=* ]] || shift ;;
    *) arguments+=("$1") ;;
    esac
    shift
done
# Cargo asks for the version first.
[[ " ${arguments[*]} " == *' --crate-name '* ]] || exec rustdoc "${arguments[@]}"
exec rustdoc -D warnings --out-dir target/doc "${arguments[@]}"
