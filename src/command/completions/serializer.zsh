
_serializer_locks() {
    compadd -- ${(f)"$(serializer completions --names 2> /dev/null)"}
}

_serializer() {