#!/usr/bin/env bash
# Writes what PROGRAM prints of itself below DIRECTORY, as packages have it in /usr/share: manual
# pages, completions and the plugin's definition. `scripts/share.sh PROGRAM DIRECTORY`
set -euo pipefail

program=$1 share=$2
mkdir -p "$share"/{man/man1,bash-completion/completions,zsh/site-functions,serializer} \
    "$share/fish/vendor_completions.d"
"$program" man >"$share/man/man1/serializer.1"
# `schedule` has commands of its own; a name is what stands before two blanks.
commands() {
    "$program" "$@" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\)  .*/\1/p' | grep -vx help
}
for command in $(commands); do
    "$program" man "$command" >"$share/man/man1/serializer-$command.1"
done
for command in $(commands schedule); do
    "$program" man schedule "$command" >"$share/man/man1/serializer-schedule-$command.1"
done
"$program" completions bash >"$share/bash-completion/completions/serializer"
"$program" completions zsh >"$share/zsh/site-functions/_serializer"
"$program" completions fish >"$share/fish/vendor_completions.d/serializer.fish"
"$program" plugin >"$share/serializer/dbtmutex.yml"
