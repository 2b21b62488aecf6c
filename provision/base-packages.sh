#!/bin/sh
# Notes what the signed lists of the mirror say of each package that was unpacked: its file, size and SHA-256.
# mmdebstrap calls it on the build host with the root directory as $1, while the lists are there.
set -eu
root=$1

dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${db:Status-Abbrev} ${Package}:${Architecture}=${Version}\n' |
    sed -n 's/^ii  //p' |
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG xargs apt-cache show --no-all-versions > "$root/../packages.txt"
