#!/bin/sh
# Ends once the share is mounted, or with 1 after some seconds.
: "${dir:?}" "${name:?}" "${seconds:?}"
end=$(($(date +%s) + seconds))
until findmnt --noheadings --types fuse.sshfs --source "$name" --mountpoint "$dir"; do
    [ "$(date +%s)" -lt "$end" ] || exit 1
    sleep 0.2
done
