"""Programs that users import images with, from Debian, each in a root directory of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmimage.util.run import Completed, Confine, run

CONTROL = """Package: no-virtualbox-modules
Version: 1
Architecture: all
Maintainer: nobody <nobody@example.invalid>
Provides: virtualbox-modules
Description: stands for the kernel modules, which importing does not need
"""

# A network of its own: what libvirt sets up there is gone with it. libvirt wants `/` to be a mount.
IN_TREE = """
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount --rbind /dev "$1/dev"
ip link set lo up
set -- "$1" env --ignore-environment PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM=dumb "${@:2}"
exec chroot "$@"
"""


@dataclass(frozen=True)
class Tree:
    """A root directory with programs in it; files for them go below `path`."""

    path: Path

    def run(self, *args: str, check: bool = True, timeout: float = 300) -> Completed:
        """Run a command inside, as root of it, without a network to the outside."""
        argv = ["unshare", "--net", "bash", "-c", IN_TREE, "bash", str(self.path), *args]
        return run(argv, confine=Confine.FAKE_ROOT, timeout=timeout, check=check)


@dataclass(frozen=True)
class VirtualBox:
    """Debian sid's VirtualBox. It cannot start a machine here; importing and describing works."""

    tree: Tree

    def manage(self, *args: str, check: bool = True) -> Completed:
        """Run VBoxManage with these arguments."""
        return self.tree.run("/usr/lib/virtualbox/VBoxManage", "--nologo", *args, check=check)

    def machine(self, name: str) -> dict[str, str]:
        """Return what VirtualBox knows of a machine."""
        lines = self.manage("showvminfo", name, "--machinereadable").output.splitlines()
        pairs = (line.partition("=") for line in lines if "=" in line)
        return {key.strip('"'): value.strip('"') for key, _, value in pairs}


def install(folder: Path, suite: str, packages: Sequence[str], *options: str) -> Tree:
    """Unpack packages of a Debian suite and what they need into a new root directory in `folder`.

    Raises:
        BuildError: They cannot be had, with the end of apt's messages.
    """
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", *options]
    if packages:
        argv.append(f"--include={','.join(packages)}")
    tree = folder / "tree"
    run([*argv, suite, str(tree)], confine=Confine.FAKE_ROOT, timeout=900, env={"TMPDIR": str(folder)})
    return Tree(tree)


def install_virtualbox(folder: Path) -> VirtualBox:
    """Unpack VirtualBox into `folder`.

    Raises:
        BuildError: It cannot be had.
    """
    package = folder / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(CONTROL)
    run(["dpkg-deb", "--root-owner-group", "--build", package, folder / "modules.deb"])
    command = "apt-get install --yes --no-install-recommends /tmp/modules.deb virtualbox"
    options = [
        "--components=main,contrib",
        # A mirror of sid may be older than its Release file allows.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        f"--customize-hook=copy-in {folder}/modules.deb /tmp",
        f'--customize-hook=DEBIAN_FRONTEND=noninteractive chroot "$1" {command}',
    ]
    return VirtualBox(install(folder, "sid", [], *options))


def install_libvirt(folder: Path) -> Tree:
    """Unpack virt-v2v, and Vagrant with libvirt, into `folder`; Debian 12 is the last that has Vagrant.

    Raises:
        BuildError: They cannot be had.
    """
    packages = ["virt-v2v", "vagrant", "vagrant-libvirt", "libvirt-daemon-system", "libvirt-clients", "dnsmasq-base"]
    packages += ["iptables", "qemu-system-x86", "qemu-utils", "openssh-client"]
    tree = install(folder, "bookworm", packages)
    with (tree.path / "etc/libvirt/qemu.conf").open("a") as settings:
        # A view of /dev of its own needs more than this root directory has.
        settings.write("namespaces = []\n")
    return tree
