#!/bin/sh
# Makes the directory of a share, free of what an earlier session left; prints the user's and the group's number.
# What is mounted there is ours, or answers no more, or is somebody's. `timeout` stands before what a dead mount blocks.
: "${dir:?}" "${name:?}" "${again?}" "${has_content:?}" "${mounted:?}" "${not_ours:?}"
source=$(findmnt --noheadings --first-only --output SOURCE --mountpoint "$dir" || true)
case $source in
    '') ;;
    "$name") ;;
    vmimage-*) ! timeout 5 ls "$dir" >/dev/null 2>&1 || exit "$mounted" ;;
    *) exit "$not_ours" ;;
esac
while [ -n "$source" ]; do
    fusermount3 -u -z "$dir"
    source=$(findmnt --noheadings --first-only --output SOURCE --mountpoint "$dir" || true)
done
pkill -KILL -f "^sshfs .*fsname=$name," || true
mkdir -p "$dir" 2>/dev/null || sudo -n install -d -o "$(id -u)" -g "$(id -g)" "$dir"
[ -n "$again" ] || [ -z "$(ls -A "$dir")" ] || exit "$has_content"
id -u
id -g
