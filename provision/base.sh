#!/bin/sh
# Customizes the unpacked base; mmdebstrap calls it on the build host with the root directory as $1.
# Only what the bake needs to be reached, and what must not be in any image; all else is done by the steps.
set -eu
# What is written here has the same modes whatever this host's umask is.
umask 022
root=$1

chroot "$root" systemctl --quiet enable systemd-networkd.service systemd-resolved.service
cat > "$root/etc/systemd/network/80-dhcp.network" <<'EOF'
[Match]
Type=ether
# Without it, the interfaces that containers, hypervisors and VPNs make (veth, tap, dummy) match too: they are given
# DHCP, and taken out of their bridge.
Kind=!*

[Network]
DHCP=yes
# A bridge that somebody puts this interface into keeps it.
KeepMaster=yes

[DHCPv4]
# Clones of one image must not be taken for the same machine before they have a machine-id of their own.
ClientIdentifier=mac
EOF

printf '%s\n' 'LABEL=root / ext4 errors=remount-ro,x-systemd.growfs 0 1' \
    'LABEL=ESP /boot/efi vfat umask=0077,nofail 0 0' > "$root/etc/fstab"
mkdir -p "$root/boot/efi"
# mmdebstrap has copied this host's, with its mode.
rm -f "$root/etc/hostname" "$root/etc/hosts"
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
# Tells GRUB that the last boot went well, for a menu that waits after a failed one: slow, and not used here.
chroot "$root" systemctl --quiet disable grub-common.service

# mmdebstrap leaves the options that it gave to dpkg. What is not unpacked stays so for later packages; in the image,
# dpkg flushes to the disk again.
{
    echo '# Files of packages that are not unpacked. To have some, remove their lines and reinstall the package.'
    sed /force-unsafe-io/d "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
} > "$root/etc/dpkg/dpkg.cfg.d/50-vmimage"
rm "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
# Of those that it gave to apt, these speak of this build only.
sed -i '/^Acquire::/d; /^Dir::/d' "$root/etc/apt/apt.conf.d/99mmdebstrap"

if [ "$INITRD_DRIVERS" ]; then
    # initramfs-tools passes over a driver that is not there.
    kernel=$(ls "$root/lib/modules") unknown=
    for driver in $INITRD_DRIVERS; do
        chroot "$root" modinfo -k "$kernel" "$driver" > /dev/null 2>&1 || unknown="$unknown $driver"
    done
    if [ "$unknown" ]; then
        echo "images.yaml: initrd names what kernel $kernel has not, or what is excluded:$unknown" >&2
        exit 1
    fi
    echo MODULES=list > "$root/etc/initramfs-tools/conf.d/50-vmimage"
    # A hook, for those in /etc/initramfs-tools/modules are loaded on every machine, which takes longer than all of Debian's.
    hook=$root/etc/initramfs-tools/hooks/50-vmimage
    cat > "$hook" <<EOF
#!/bin/sh
# The drivers in the initrd. To have all that Debian puts there, remove this file and conf.d/50-vmimage, and run
# update-initramfs -u.
[ "\$1" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules $INITRD_DRIVERS
EOF
    chmod 0755 "$hook"
fi

# The one initrd: while packages were installed there was none (INITRD=No), or it would have been made three times.
chroot "$root" update-initramfs -c -k all

# The packages' own scripts have done what systemd would do once at the first boot: ld.so.cache, users, hwdb, catalog.
# See systemd-update-done.service(8).
touch -r "$root/usr" "$root/etc/.updated" "$root/var/.updated"

# The mirror that this build used may be a company's; the image takes Debian's own, which cloud-init brings along.
chroot "$root" python3 - <<'EOF'
from pathlib import Path

import yaml

release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
suite = release["VERSION_CODENAME"]
mirrors = yaml.safe_load(Path("/etc/cloud/cloud.cfg").read_text())["system_info"]["package_mirrors"]
default = next(mirror["failsafe"] for mirror in mirrors if "default" in mirror["arches"])
parts = [(default["primary"], f"{suite} {suite}-updates"), (default["security"], f"{suite}-security")]
Path("/etc/apt/sources.list").unlink(missing_ok=True)
Path("/etc/apt/sources.list.d/debian.sources").write_text("\n".join(
    f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\n"
    "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n" for uri, suites in parts))
EOF
