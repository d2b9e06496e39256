# Completes tintype in fish: this file as `tintype.fish` in ~/.config/fish/completions,
# or `tintype completions fish | source` in ~/.config/fish/config.fish.

function __tintype_complete
    set --local words (commandline --current-process --tokenize --cut-at-cursor)
    set --local current (commandline --current-token --cut-at-cursor)
    set --local lines ($words[1] __complete -- $words "$current" 2>/dev/null)
    if test "$lines[1]" = files
        __fish_complete_path "$current"
    else
        printf '%s\n' $lines[2..]
    end
end

complete --command tintype --no-files --keep-order --arguments '(__tintype_complete)'
