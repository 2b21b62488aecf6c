"""VirtualBox itself, from Debian sid, in a root directory of its own: what it says of an OVA when it imports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmimage.run import Completed, Confine, run

CONTROL = """Package: no-virtualbox-modules
Version: 1
Architecture: all
Maintainer: nobody <nobody@example.invalid>
Provides: virtualbox-modules
Description: stands for the kernel modules, which importing does not need
"""

# A machine cannot be started without the kernel modules; importing, describing and reading disks works.
IN_TREE = """
set -e
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" env HOME=/root LC_ALL=C.UTF-8 /usr/lib/virtualbox/VBoxManage "${@:2}"
"""


@dataclass(frozen=True)
class VirtualBox:
    """A root directory with VirtualBox; files for it go below `tree`."""

    tree: Path

    def manage(self, *args: str, check: bool = True) -> Completed:
        """Run VBoxManage with these arguments."""
        argv = ["bash", "-c", IN_TREE, "bash", str(self.tree), "--nologo", *args]
        return run(argv, confine=Confine.FAKE_ROOT, timeout=300, check=check)

    def machine(self, name: str) -> dict[str, str]:
        """Return what VirtualBox knows of a machine."""
        lines = self.manage("showvminfo", name, "--machinereadable").output.splitlines()
        pairs = (line.partition("=") for line in lines if "=" in line)
        return {key.strip('"'): value.strip('"') for key, _, value in pairs}


def install_virtualbox(folder: Path) -> VirtualBox:
    """Unpack Debian sid's VirtualBox into `folder`.

    Raises:
        BuildError: It cannot be had, with the end of apt's messages.
    """
    package = folder / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(CONTROL)
    run(["dpkg-deb", "--root-owner-group", "--build", package, folder / "modules.deb"])
    tree = folder / "tree"
    install = "apt-get install --yes --no-install-recommends /tmp/modules.deb virtualbox"
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", "--components=main,contrib"]
    # A mirror of sid may be older than its Release file allows.
    argv += ['--aptopt=Acquire::Check-Valid-Until "false"', f"--customize-hook=copy-in {folder}/modules.deb /tmp"]
    argv += [f'--customize-hook=DEBIAN_FRONTEND=noninteractive chroot "$1" {install}', "sid", str(tree)]
    run(argv, confine=Confine.FAKE_ROOT, timeout=900, env={"TMPDIR": str(folder)})
    return VirtualBox(tree)
