"""Component bootloader: the disk starts under both kinds of firmware, also where nobody registered it."""

from __future__ import annotations

from testinfra.host import Host


def test_removable_path(root: Host) -> None:
    assert root.mount_point("/boot/efi").exists
    assert root.file("/boot/efi/EFI/BOOT/BOOTX64.EFI").size > 100_000


def test_kernel_arguments(host: Host) -> None:
    assert {"console=tty0", "console=ttyS0,115200", "no_timer_check"} <= set(
        host.file("/proc/cmdline").content_string.split()
    )
