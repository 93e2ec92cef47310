# Completion of opsctl for fish: `opsctl completion fish` prints this.
#
#   opsctl completion fish > ~/.config/fish/completions/opsctl.fish

function __opsctl_complete
    set -l words (commandline -opc)
    set -l program opsctl
    string match -q '*/*' -- $words[1]; and set program $words[1]

    set -l lines ($program __complete (commandline -cp | string collect) 2>/dev/null)
    if test "$lines[1]" = files
        set -l option (string match -r -- '^-[^=]*=' (commandline -ct))
        printf "$option%s\n" (__fish_complete_path (string replace -- "$option" '' (commandline -ct)))
    else if set -q lines[2]
        printf '%s\n' $lines[2..-1]
    end
end

complete --command opsctl --no-files --keep-order --arguments '(__opsctl_complete)'
