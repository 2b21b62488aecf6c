"""sshfs in the guest: the commands that mount, watch and unmount there."""

from __future__ import annotations

import contextlib
import secrets
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from vmimage.access.login import read_answer

MOUNT_SECONDS = 60
COMMAND_SECONDS = 90.0
HAS_CONTENT, MOUNTED, NOT_OURS = 21, 22, 23

# What is mounted there is ours, or answers no more, or is somebody's. `timeout` stands before what a dead mount blocks.
PREPARE = f"""
source=$(findmnt --noheadings --first-only --output SOURCE --mountpoint "$dir" || true)
case $source in
    '') ;;
    "$name") ;;
    vmimage-*) ! timeout 5 ls "$dir" >/dev/null 2>&1 || exit {MOUNTED} ;;
    *) exit {NOT_OURS} ;;
esac
while [ -n "$source" ]; do
    fusermount3 -u -z "$dir"
    source=$(findmnt --noheadings --first-only --output SOURCE --mountpoint "$dir" || true)
done
pkill -KILL -f "^sshfs .*fsname=$name," || true
mkdir -p "$dir" 2>/dev/null || sudo -n install -d -o "$(id -u)" -g "$(id -g)" "$dir"
[ -n "$again" ] || [ -z "$(ls -A "$dir")" ] || exit {HAS_CONTENT}
id -u
id -g
"""
WAIT_UNTIL_MOUNTED = f"""
end=$(($(date +%s) + {MOUNT_SECONDS}))
until findmnt --noheadings --types fuse.sshfs --source "$name" --mountpoint "$dir"; do
    [ "$(date +%s)" -lt "$end" ] || exit 1
    sleep 0.2
done
"""
# Lazily when a program works in there; that one then sees errors.
UNMOUNT = """
fusermount3 -u "$dir" 2>/dev/null && exit
sleep 1
fusermount3 -u "$dir" 2>/dev/null && exit
fusermount3 -u -z "$dir"
pkill -f "^sshfs .*fsname=$name," || true
echo busy
"""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What is shared, and where it appears.

    Attributes:
        name: What the guest's mount table calls it; one run of `invoke share` has one of its own.
    """

    source: Path
    target: str
    read_only: bool = False
    follow_links: bool = False
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
        assignments = "; ".join(f"{key}={shlex.quote(value)}" for key, value in values.items())
        # Through sh, whatever the user's own shell is.
        return f"exec sh -euc {shlex.quote(f'{assignments}{text}')}"


@dataclass(frozen=True, kw_only=True)
class Session:
    """One ssh session, and the share that it carries."""

    share: Share
    transport: paramiko.Transport

    def command(self, text: str, **variables: str) -> tuple[int, str]:
        """Run a script in the guest; returns its exit status and its output."""
        with contextlib.closing(self.start(self.share.script(text, **variables))) as channel:
            status, output, errors = read_answer(channel, seconds=COMMAND_SECONDS)
            return status, (output + errors).strip()

    def start(self, command: str) -> paramiko.Channel:
        """Start a command in the guest."""
        channel = self.transport.open_session(timeout=COMMAND_SECONDS)
        channel.exec_command(command)
        return channel
