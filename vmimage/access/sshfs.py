"""sshfs in the guest: the commands that mount, watch and unmount there."""

from __future__ import annotations

import contextlib
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from vmimage.access.login import read_answer
from vmimage.vm import bounded
from vmimage.vm.limits import COMMAND_SECONDS

MOUNT_SECONDS = 60
HAS_CONTENT, MOUNTED, NOT_OURS = 21, 22, 23

SCRIPTS = Path(__file__).parent / "in_guest"
PREPARE, WAIT_UNTIL_MOUNTED, UNMOUNT = (
    (SCRIPTS / name).read_text() for name in ("prepare.sh", "wait-until-mounted.sh", "unmount.sh")
)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What is shared, and where it appears.

    Attributes:
        doors: Links that are served as their targets (see vmimage.access.doors).
        name: Its name in the guest's mount table, unique to one run of `invoke share`.
    """

    source: Path
    target: str
    read_only: bool = False
    doors: Mapping[bytes, bytes] = field(default_factory=dict)
    notify: bool = False
    name: str = field(default_factory=lambda: f"vmimage-{secrets.token_hex(8)}")

    def sshfs(self) -> str:
        """Return the command that mounts it in the guest."""
        options = [
            f"fsname={self.name}",
            "passive",
            "allow_other",
            "default_permissions",
            # Links say the same here and there; where they lead to is the guest's own affair.
            "no_contain_symlinks",
            # What changes on the host is seen within a second or two, instead of 20.
            "dcache_timeout=1",
            *(["ro"] if self.read_only else []),
        ]
        return f"exec sshfs -f -o {','.join(options)} :/ {shlex.quote(self.target)}"

    def script(self, text: str, **variables: str) -> str:
        """Return a command that runs a shell script in the guest."""
        values = {"dir": self.target, "name": self.name, **variables}
        assignments = "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
        # Through sh, whatever the user's own shell is.
        return f"exec sh -euc {shlex.quote(assignments + text)}"


@dataclass(frozen=True, kw_only=True)
class Session:
    """One ssh session, and the share that it carries."""

    share: Share
    transport: paramiko.Transport

    def command(self, text: str, **variables: str) -> tuple[int, str, str]:
        """Run a script in the guest; returns its exit status, its output and its errors.

        Text among the errors alone is no failure: sudo says that it cannot resolve the host's name, and works.
        """
        with contextlib.closing(self.start(self.share.script(text, **variables))) as channel:
            return read_answer(channel, seconds=COMMAND_SECONDS)

    def start(self, command: str) -> paramiko.Channel:
        """Start a command in the guest."""
        return bounded.start(self.transport, command)
