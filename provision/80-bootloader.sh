#!/bin/sh
# One disk that starts under BIOS and under UEFI. The removable path (EFI/BOOT/BOOTX64.EFI) needs no entry in the
# firmware's variables, which do not travel with a disk.
set -eu
root_disk=/dev/$(lsblk --noheadings --output PKNAME "$(findmnt --noheadings --output SOURCE /)")
mountpoint -q /boot/efi || mount /boot/efi
grub-install --target=i386-pc "$root_disk"
grub-install --target=x86_64-efi --efi-directory=/boot/efi --removable --no-nvram
update-grub
umount /boot/efi
