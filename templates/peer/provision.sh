#!/bin/sh
# Runs inside the peer's guest, as root: packages by apt, then the same steps as in our own image, then cleanup.
# Environment: PACKAGES, SOURCES, APT_OPTIONS, CUSTOMIZE, INITRD_DRIVERS, STEPS, VERSIONS (image.pkr.hcl explains them).
set -eu
export DEBIAN_FRONTEND=noninteractive
mkdir /tmp/payload
tar -C /tmp/payload -xf /tmp/payload.tar
rm /tmp/payload.tar

# The mirror of this build; the image keeps the sources that it came with.
sources=/etc/apt/sources.list.d/debian.sources
[ "$CUSTOMIZE" ] || mv "$sources" /run/
# shellcheck disable=SC2153  # comes from Packer
echo "$SOURCES" | tr ';' '\n' > /etc/apt/sources.list
# shellcheck disable=SC2086  # options and packages are lists
apt-get $APT_OPTIONS -q update
# shellcheck disable=SC2086
apt-get $APT_OPTIONS -q -y --no-install-recommends install $PACKAGES
rm /etc/apt/sources.list
if [ "$CUSTOMIZE" ]; then
    rm -f /boot/initrd.img-* # the script makes it
    "/tmp/payload/provision/$CUSTOMIZE" /
else
    mv "/run/${sources##*/}" "$sources"
fi

export PAYLOAD=/tmp/payload PINS=/tmp/payload/pins
for version in $VERSIONS; do
    export "${version?}"
done
for step in $STEPS; do
    echo "step $step"
    files=$PAYLOAD/provision/files/${step%.sh}
    if [ -d "$files" ]; then
        cp -dR --preserve=mode "$files/." /
    fi
    (cd / && "$PAYLOAD/provision/$step")
done

# What was deleted would be compressed and shipped, too.
fstrim /
