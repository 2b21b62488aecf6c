#!/bin/sh
# Unmounts a share: lazily when a program works in there, which then sees errors.
# sshfs is ended after that: where a pod was started while it was mounted, the pod holds it still, and sshfs would stay.
: "${dir:?}" "${name:?}"
fusermount3 -u "$dir" 2>/dev/null ||
    { sleep 1 && fusermount3 -u "$dir" 2>/dev/null; } ||
    { fusermount3 -u -z "$dir"; echo busy; }
pkill -f "^sshfs .*fsname=$name," || true
