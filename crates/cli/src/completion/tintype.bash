# Completes tintype in bash: `source <(tintype completions bash)` in ~/.bashrc,
# or this file as `tintype` in ~/.local/share/bash-completion/completions.

_tintype() {
    # Bash has cut the line into words at `@`, `=` and `:` too: they are put together
    # again, up to the cursor.
    local rest=${COMP_LINE:0:COMP_POINT} words=() at part trimmed
    for ((at = 0; at <= COMP_CWORD; at++)); do
        part=${COMP_WORDS[at]}
        trimmed=${rest#"${rest%%[![:space:]]*}"}
        ((at == COMP_CWORD)) && part=$trimmed
        if ((at > 0)) && [[ $trimmed == "$rest" ]]; then
            words[${#words[@]} - 1]+=$part
        else
            words+=("$part")
        fi
        rest=${trimmed#"$part"}
    done
    local current=${words[${#words[@]} - 1]} lines line
    mapfile -t lines < <("${1/#\~\//$HOME/}" __complete -- "${words[@]}" 2>/dev/null)
    COMPREPLY=()
    if [[ ${lines[0]} == files ]]; then
        compopt -o default
        return
    fi
    # Bash replaces only what follows the last such sign.
    local kept=${current%"$2"}
    for line in "${lines[@]:1}"; do
        line=${line%%$'\t'*}
        COMPREPLY+=("${line#"$kept"}")
    done
}
complete -o nosort -F _tintype tintype 2>/dev/null || complete -F _tintype tintype
