#!/bin/sh
# Customizes the disk with which a peer starts that installs all else by apt: it boots and answers ssh.
# mmdebstrap calls it with the root directory as $1.
set -eu
chroot "$1" systemctl --quiet enable systemd-networkd.service
printf '[Match]\nType=ether\n\n[Network]\nDHCP=yes\n' > "$1/etc/systemd/network/80-dhcp.network"
chroot "$1" update-initramfs -c -k all
