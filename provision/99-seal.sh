#!/bin/sh
# The last step: the image says what it is, and nothing of this build's identity or history stays on the disk.
set -eu
install -D -m 0644 "$PAYLOAD/release.json" /etc/vmimage/release.json

# Services that would write again while the machine goes down.
systemctl stop systemd-random-seed.service systemd-timesyncd.service
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret

# Identity: made anew at the first boot of every clone.
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id
: > /etc/machine-id
rm -rf /var/lib/cloud /var/lib/dhcp /var/lib/systemd/timers /var/lib/systemd/network

# History: of package installation, of this boot, of shells.
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache
rm -rf /var/log/apt /var/log/private /var/log/installer
find /var/log -type f -delete
rm -rf /tmp/* /var/tmp/*
rm -f /root/.bash_history /root/.lesshst /root/.viminfo /home/*/.bash_history
rm -rf /root/.cache /home/*/.cache
