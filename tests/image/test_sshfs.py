"""Component sshfs: a real mount over ssh to the machine itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from testinfra.host import Host


@pytest.fixture
def mounted(host: Host) -> Iterator[tuple[str, str]]:
    """A directory of the guest mounted in the guest over loopback ssh, by a key made for this test: (source, mount)."""
    folder = host.check_output("mktemp -d")
    host.check_output("mkdir %s/source %s/mount && ssh-keygen -q -t ed25519 -N '' -f %s/key", folder, folder, folder)
    host.check_output("cp -p ~/.ssh/authorized_keys %s/ && cat %s/key.pub >> ~/.ssh/authorized_keys", folder, folder)
    options = f"IdentityFile={folder}/key,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,allow_other"
    try:
        host.check_output("sshfs -o %s dev@127.0.0.1:%s/source %s/mount", options, folder, folder)
        yield f"{folder}/source", f"{folder}/mount"
    finally:
        host.run("fusermount3 -u %s/mount", folder)
        host.run("cp -p %s/authorized_keys ~/.ssh/ && rm -r %s", folder, folder)


def test_sshfs_reads_and_writes(host: Host, mounted: tuple[str, str]) -> None:
    source, mount = mounted
    assert host.check_output("findmnt -no FSTYPE %s", mount) == "fuse.sshfs"
    host.check_output("echo written > %s/a && echo there > %s/b", mount, source)
    assert host.check_output("cat %s/a", source) == "written"
    assert host.check_output("cat %s/b", mount) == "there"


def test_others_may_use_the_mount(mounted: tuple[str, str], root: Host) -> None:
    # allow_other, which /etc/fuse.conf must permit: without it, root is refused.
    assert root.run("ls %s", mounted[1]).rc == 0
