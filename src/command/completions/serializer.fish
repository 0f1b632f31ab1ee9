
complete -c serializer -n "__fish_seen_subcommand_from lock unlock wait break status" \
    -f -a "(serializer completions --names 2> /dev/null)"
complete -c serializer -f -a "(__fish_complete_command)" \
    -n "__fish_seen_subcommand_from run once; and contains -- -- (commandline -opc)"
