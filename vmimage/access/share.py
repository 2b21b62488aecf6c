"""`invoke share`: a directory of this host, mounted in a running machine by sshfs over one ssh session.

sshfs runs in the guest and speaks SFTP with its standard input and output; we answer it from here (sftp.py), so this
host needs no ssh server and the guest holds no key of ours.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import paramiko

from vmimage.access.carry import carry_on, logged_in, wait_until_lost
from vmimage.access.confined import Folder
from vmimage.access.doors import closed_doors, named_doors
from vmimage.access.login import Address
from vmimage.access.notify import Notifier, touch_command
from vmimage.access.sftp import UNCHANGED, Service
from vmimage.access.sshfs import (
    HAS_CONTENT,
    MOUNT_SECONDS,
    MOUNTED,
    NOT_OURS,
    PREPARE,
    UNMOUNT,
    WAIT_UNTIL_MOUNTED,
    Session,
    Share,
)
from vmimage.util.console import Console
from vmimage.util.errors import HostError, InputError
from vmimage.util.files import expanded
from vmimage.util.run import tail
from vmimage.vm.limits import COMMAND_SECONDS, SHOWN_LINES

# sshfs ends at once when it is unmounted; the session ends in any case.
END_SECONDS = 10.0
READABLE = stat.S_IROTH | stat.S_IXOTH
"""What others than the owner need of a directory."""


def make_share(source: str, target: str | None, *, read_only: bool, notify: bool, follow: Sequence[str] = ()) -> Share:
    """Check what the user asks for.

    Args:
        follow: Links that are served as their targets: LINK=TARGET.

    Raises:
        InputError: The directory cannot be shared.
    """
    folder = expanded(source, "the directory").resolve()
    if not folder.is_dir():
        raise InputError(f"there is no directory {source}", hint="name a directory of this host")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{source} cannot be read", hint="share a directory that you may read")
    if notify and read_only:
        raise InputError(
            "--notify and --read-only do not go together",
            hint="a file can be touched in the guest only where it may be written",
        )
    if not target and not folder.name:
        raise InputError(f"{source} has no name that the guest could use", hint="name the directory in the guest too")
    where = posixpath.normpath(target or f"/home/dev/{folder.name}")
    if not where.startswith("/") or where.strip("/") == "" or not where.isprintable():
        raise InputError(f"{target}: no directory of the guest", hint="an absolute path, such as /home/dev/project")
    doors = named_doors(folder, follow)
    return Share(source=folder, target=where, read_only=read_only, doors=doors, notify=notify)


def find_private_key(given: str | None) -> Path | None:
    """Return the key file that the user named, if any.

    Raises:
        InputError: There is no such file.
    """
    if not given:
        return None
    path = expanded(given, "--ssh-key")
    if not path.is_file() or path.suffix == ".pub":
        raise InputError(f"--ssh-key {given}: no private key", hint="name the file without .pub")
    return path


def run_share(share: Share, address: Address, known_hosts: Path, console: Console) -> None:
    """Mount, mount again after every reboot and sleep, and unmount when interrupted.

    Raises:
        VmimageError: The machine could not be reached or refused us at the start, or it no longer lets us in.
    """
    for link, leads_to in share.doors.items():
        console.say(f"also served, by the link {os.fsdecode(link)}: {os.fsdecode(leads_to)}")
    if closed := closed_doors(share.source, share.doors):
        console.say("\n  ".join(["not served, since these links lead out; each is by its option:", *closed]))
    with contextlib.closing(Folder(share.source, read_only=share.read_only, doors=share.doors)) as folder:
        # One for all sessions: what it says of the directory is said once.
        notifier = Notifier(share.source, console.warn)
        carry_on(partial(_carry, share, address, known_hosts, folder, console, notifier), address, console)


def _carry(
    share: Share,
    address: Address,
    known_hosts: Path,
    folder: Folder,
    console: Console,
    notifier: Notifier,
    *,
    again: bool,
) -> None:
    """Log in and mount; returns when the session is lost.

    Args:
        again: The directory was mounted before, so the guest's own directory need not be empty.

    Raises:
        VmimageError: It could not be mounted.
    """
    with logged_in(address, known_hosts, console, again=again) as transport:
        session = Session(share=share, transport=transport)
        with _mounted(session, folder, console, notifier.by_guest, again=again) as lost:
            _announce(share, address, console, again=again)
            with contextlib.ExitStack() as stack:
                if share.notify:
                    stack.enter_context(notifier.touching(session.start(touch_command(share.target))))
                wait_until_lost(transport, lost, Presence(folder, console).look)


def _announce(share: Share, address: Address, console: Console, *, again: bool) -> None:
    console.event("mounted", source=str(share.source), target=share.target, address=str(address), again=again)
    if again:
        console.say(f"mounted again: {share.target}")
        return
    console.say(f"{share.source} is {share.target} in {address}{' (read-only)' if share.read_only else ''}")
    if share.source.stat().st_mode & READABLE != READABLE:
        console.say("  only dev may read it there: pods that run as another user need `chmod -R o+rX` here")
    if share.notify:
        console.say("  files changed here are touched there, for programs that wait for file events (inotify),")
        console.say("  but for .git, node_modules and the like")
    else:
        console.say("  programs there that wait for file events (inotify) see no change made here (--notify helps)")
    console.say("Ctrl-C unmounts it.")


@contextlib.contextmanager
def _mounted(
    session: Session, folder: Folder, console: Console, on_change: Callable[[bytes], None], *, again: bool
) -> Iterator[threading.Event]:
    """Mount for the length of a `with` block; the event yielded is set when the session, or sshfs in it, has ended."""
    share = session.share
    owner = prepare(session, again=again)
    channel = session.start(share.sshfs())
    lost = threading.Event()

    def serve() -> None:
        try:
            Service(folder, channel, owner=owner, on_change=on_change).serve()
        finally:
            lost.set()

    service = threading.Thread(target=serve, name="sftp", daemon=True)
    service.start()
    try:
        waiting = session.start(share.script(WAIT_UNTIL_MOUNTED, seconds=str(MOUNT_SECONDS)))
        end = time.monotonic() + MOUNT_SECONDS + COMMAND_SECONDS
        while not waiting.exit_status_ready() and time.monotonic() < end and not lost.wait(0.1):
            pass
        if lost.is_set() or not waiting.exit_status_ready() or waiting.recv_exit_status():
            said = channel.recv_stderr(4096).decode(errors="replace") if channel.recv_stderr_ready() else ""
            raise HostError(
                f"sshfs did not mount {share.target} in the guest{tail(said, SHOWN_LINES)}", hint="is sshfs in it?"
            )
        yield lost
    finally:
        if not lost.is_set():
            _unmount(session, service, console)
        channel.close()


def prepare(session: Session, *, again: bool) -> tuple[int, int]:
    """Make the directory in the guest, free of what an earlier session left; returns the user and group there."""
    target = session.share.target
    codes = {"has_content": HAS_CONTENT, "mounted": MOUNTED, "not_ours": NOT_OURS}
    status, said, errors = session.command(
        PREPARE, again="yes" if again else "", **{name: str(code) for name, code in codes.items()}
    )
    refusals = {
        HAS_CONTENT: (f"{target} in the guest is not empty", "name another directory of the guest, or empty that one"),
        MOUNTED: (
            f"{target} is shared already",
            "end the other `invoke share`, or name another directory",
        ),
        NOT_OURS: (f"something else is mounted on {target} in the guest", "name another directory of the guest"),
    }
    if status in refusals:
        message, hint = refusals[status]
        raise InputError(message, hint=hint)
    if status:
        raise HostError(f"{target} could not be made in the guest{tail(said + errors, SHOWN_LINES)}")
    return _owner(said)


def _owner(said: str) -> tuple[int, int]:
    """Return the user and group that the guest's preparation prints.

    Raises:
        HostError: It prints something else.
    """
    match = re.fullmatch(r"\s*([0-9]{1,10})\s+([0-9]{1,10})\s*", said, re.ASCII)
    user, group = (int(match[1]), int(match[2])) if match else (UNCHANGED, UNCHANGED)
    if max(user, group) >= UNCHANGED:
        raise HostError(
            f"the guest does not tell its user's number{tail(said, SHOWN_LINES)}", hint="is it a machine of vmimage?"
        )
    return user, group


class Presence:
    """Tells the user when the shared directory is gone, and when it is there again."""

    def __init__(self, folder: Folder, console: Console) -> None:
        self._folder, self._console = folder, console
        self._was_there, self._told = True, True

    def look(self) -> None:
        """Look for it; twice in a row, since many programs make a directory anew at once."""
        there = self._folder.is_there()
        if there == self._was_there and there != self._told:
            self._told = there
            path = os.fsdecode(self._folder.path)
            self._console.event("directory", path=path, there=there)
            if there:
                self._console.say(f"{path} is there again, and is what the machine sees")
            else:
                self._console.say(f"{path} is gone; the machine sees nothing until it is there again")
        self._was_there = there


def _unmount(session: Session, service: threading.Thread, console: Console) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        _, said, _ = session.command(UNMOUNT)
        if said.strip() == "busy":
            console.say(f"a program in the guest still used {session.share.target}; it is unmounted all the same")
        # sshfs ends, and with it the stream.
        service.join(timeout=END_SECONDS)
        console.say(f"unmounted {session.share.target}")
