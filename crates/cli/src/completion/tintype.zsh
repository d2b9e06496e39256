#compdef tintype
# Completes tintype in zsh: this file as `_tintype` in a folder of `fpath`,
# or `source <(tintype completions zsh)` in ~/.zshrc, after `compinit`.

_tintype() {
    local -a before lines values shown
    local line value
    before=("${(@Q)words[1,CURRENT-1]}")
    lines=("${(@f)$(${~words[1]} __complete -- "${before[@]}" "${(Q)PREFIX}" 2>/dev/null)}")
    if [[ ${lines[1]} == files ]]; then
        _files
        return
    fi
    for line in "${(@)lines[2,-1]}"; do
        value=${line%%$'\t'*}
        values+=("$value")
        if [[ $line == *$'\t'* ]]; then
            shown+=("$value  -- ${line#*$'\t'}")
        else
            shown+=("$value")
        fi
    done
    compadd -V tintype -l -d shown -a values
}

if [[ ${funcstack[1]} == _tintype ]]; then
    _tintype "$@"
else
    compdef _tintype tintype
fi
