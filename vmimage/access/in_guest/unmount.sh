#!/bin/sh
# Unmounts a share: lazily when a program works in there, which then sees errors.
: "${dir:?}" "${name:?}"
fusermount3 -u "$dir" 2>/dev/null && exit
sleep 1
fusermount3 -u "$dir" 2>/dev/null && exit
fusermount3 -u -z "$dir"
pkill -f "^sshfs .*fsname=$name," || true
echo busy
