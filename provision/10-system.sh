#!/bin/sh
# The user dev, and what makes the image behave the same in every hypervisor (most of it is in files/10-system).
set -eu
chmod 0440 /etc/sudoers.d/dev
useradd --create-home --uid 1000 --shell /bin/bash --comment Developer dev
# Locked: no password opens this account, at the console it needs none.
usermod --password '*' dev
systemctl --quiet enable vmimage-host-keys.service
# What the machine is updated with, and when, is its user's business.
systemctl --quiet disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer
# Waiting for one interface is enough: machines may have more, unplugged.
mkdir -p /etc/systemd/system/systemd-networkd-wait-online.service.d
printf '[Service]\nExecStart=\nExecStart=/usr/lib/systemd/systemd-networkd-wait-online --any --timeout=60\n' \
    > /etc/systemd/system/systemd-networkd-wait-online.service.d/10-any.conf
