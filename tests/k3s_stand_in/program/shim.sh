#!/bin/sh
# Stands for containerd-shim: the parent of one container, for as long as that runs. A container is a process in the
# network namespace of its pod and a mount namespace of its own, whose mounts are made as runc makes them.
#   shim NETWORK-NAMESPACE ROOT rw|ro [SOURCE TARGET private|slave|shared rw|ro|rro]... -- COMMAND...
set -eu
if [ "$1" != inside ]; then
    namespace=$1
    shift
    # With the first process of a container all others of it end.
    nsenter --net="$namespace" unshare --mount --propagation slave --pid --fork --kill-child /bin/sh "$0" inside "$@" &
    wait $!
    exit
fi
root=$2 access=$3
shift 3
mount --bind "$root" "$root"
mount --make-private "$root"
while [ "$1" != -- ]; do
    mount --rbind "$1" "$root$2"
    mount "--make-r$3" "$root$2"
    case $4 in
        ro) mount -o remount,bind,ro "$root$2" ;;
        rro) findmnt --list --noheadings --submounts --output TARGET --mountpoint "$root$2" |
            while read -r mounted; do mount -o remount,bind,ro "$mounted"; done ;;
    esac
    shift 4
done
shift
[ "$access" = rw ] || mount -o remount,bind,ro "$root"
exec "$@"
