#!/bin/sh
# Customizes the unpacked base; mmdebstrap calls it on the build host with the root directory as $1.
# Only what the bake needs to be reached, and what must not be in any image; all else is done by the steps.
set -eu
root=$1

chroot "$root" systemctl --quiet enable systemd-networkd.service systemd-resolved.service
cat > "$root/etc/systemd/network/80-dhcp.network" <<'EOF'
[Match]
Type=ether

[Network]
DHCP=yes

[DHCPv4]
# Clones of one image must not be taken for the same machine before they have a machine-id of their own.
ClientIdentifier=mac
EOF

printf '%s\n' 'LABEL=root / ext4 errors=remount-ro,x-systemd.growfs 0 1' \
    'LABEL=ESP /boot/efi vfat umask=0077,nofail 0 2' > "$root/etc/fstab"
mkdir -p "$root/boot/efi"
echo vmimage > "$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 vmimage\n::1 localhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"

# Identity is made at first boot. Debian's unit makes the host keys, but only at a boot that systemd calls the first;
# with an empty machine-id none is (machine-id(5), "first boot semantics"), so it runs at every boot, at no cost.
mkdir -p "$root/etc/systemd/system/sshd-keygen.service.d"
cat > "$root/etc/systemd/system/sshd-keygen.service.d/10-any-boot.conf" <<'EOF'
[Unit]
ConditionFirstBoot=
ConditionPathIsReadWrite=/etc/ssh

[Service]
# ed25519 and ecdsa are what every ssh client of the last ten years speaks; an RSA key takes long to find.
ExecStart=
ExecStart=/bin/sh -c 'for type in ed25519 ecdsa; do key=/etc/ssh/ssh_host_$${type}_key; \
    [ -e $$key ] || ssh-keygen -q -t $$type -N "" -f $$key; done'
EOF
rm -f "$root"/etc/ssh/ssh_host_*
: > "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
