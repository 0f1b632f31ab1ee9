
_serializer_words() {
    local i command=
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --) break ;;
            -*) ;;
            *) command=${command:-${COMP_WORDS[i]}} ;;
        esac
    done
    if [[ $i -lt $COMP_CWORD ]] && declare -F _command_offset > /dev/null; then
        _command_offset $((i + 1))
    elif [[ $i -lt $COMP_CWORD ]]; then
        COMPREPLY=($(compgen -c -- "$2"))
    elif [[ $3 = --name ||
        $2 != -* && $command =~ ^(lock|unlock|wait|break|status)$ && $3 != -* ]]; then
        COMPREPLY=($(compgen -W "$(serializer completions --names 2> /dev/null)" -- "$2"))
    else
        _serializer "$@"
    fi
}
complete -F _serializer_words -o bashdefault -o default serializer
