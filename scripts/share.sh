#!/usr/bin/env bash
# Writes the files of /usr/share that PROGRAM generates into DIRECTORY: manual pages, completions
# and the plugin's definition. `scripts/share.sh PROGRAM DIRECTORY [EMULATOR]`
set -euo pipefail

share=$2
program=("${3:-env}" "$1")
mkdir -p "$share"/{man/man1,bash-completion/completions,zsh/site-functions,serializer} \
    "$share/fish/vendor_completions.d"
"${program[@]}" man >"$share/man/man1/serializer.1"
# The names of commands: words before two blanks. `schedule` has its own commands.
commands() {
    "${program[@]}" "$@" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\)  .*/\1/p' | grep -vx help
}
for command in $(commands); do
    "${program[@]}" man "$command" >"$share/man/man1/serializer-$command.1"
done
for command in $(commands schedule); do
    "${program[@]}" man schedule "$command" >"$share/man/man1/serializer-schedule-$command.1"
done
"${program[@]}" completions bash >"$share/bash-completion/completions/serializer"
"${program[@]}" completions zsh >"$share/zsh/site-functions/_serializer"
"${program[@]}" completions fish >"$share/fish/vendor_completions.d/serializer.fish"
"${program[@]}" plugin >"$share/serializer/dbtmutex.yml"
