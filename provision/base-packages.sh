#!/bin/sh
# Keeps what the base was made from, in a folder beside the root directory $1: the packages, and the mirror's lists of
# them as apt verified them. mmdebstrap calls it on the build host, while they are there.
set -eu
root=$1
kept=$root/../kept
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"

mkdir "$kept" "$kept/lists" "$kept/debs"
# What the lists say of each package that was unpacked: its file, size and SHA-256.
dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${db:Status-Abbrev} ${Package}:${Architecture}=${Version}\n' |
    sed -n 's/^ii  //p' |
    xargs -r apt-cache show --no-all-versions > "$kept/packages.txt"
apt-get indextargets --format "$TARGETS" > "$kept/targets.txt"
find "$root/var/lib/apt/lists" -maxdepth 1 -type f -name '*_*' -exec ln -t "$kept/lists" {} +
find "$root/var/cache/apt/archives" -maxdepth 1 -type f -name '*.deb' -exec ln -t "$kept/debs" {} +
