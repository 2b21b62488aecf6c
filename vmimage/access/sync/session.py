"""`invoke share --sync`: copies a directory into a machine, and what changes, over one ssh session."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import paramiko

from vmimage.access.carry import DEAD_SECONDS, carry_on, logged_in, wait_until_lost
from vmimage.access.login import Address
from vmimage.access.notify import Notifier
from vmimage.access.share import prepare
from vmimage.access.sshfs import Session, Share
from vmimage.access.sync.copier import Copier
from vmimage.access.sync.tree import Tree
from vmimage.util.console import Console
from vmimage.util.errors import HostError
from vmimage.util.run import tail
from vmimage.vm.limits import SHOWN_LINES

AGENT = (Path(__file__).parent.parent / "in_guest" / "sync.py").read_text()


def run_sync(share: Share, tree: Tree, address: Address, known_hosts: Path, console: Console) -> None:
    """Copy, and copy again after every reboot and sleep, until interrupted.

    Raises:
        VmimageError: The machine could not be reached or refused us at the start, or it no longer lets us in.
    """
    # One for all sessions: what it says of the directory is said once.
    notifier = Notifier(share.source, console.warn, everything=True)
    carry_on(partial(_carry, share, tree, address, known_hosts, console, notifier), address, console)


def _carry(
    share: Share,
    tree: Tree,
    address: Address,
    known_hosts: Path,
    console: Console,
    notifier: Notifier,
    *,
    again: bool,
) -> None:
    with logged_in(address, known_hosts, console, again=again) as transport:
        session = Session(share=share, transport=transport)
        prepare(session, again=True)
        channel = session.start(f"exec python3 -c {shlex.quote(AGENT)} {shlex.quote(share.target)}")
        copier = Copier(tree, channel, console)
        copier.start()
        # The session may hang at any time, and is then closed from here.
        _in_background(partial(wait_until_lost, transport, copier.lost), "keep")
        stop = threading.Event()
        # Before the first look: what changes meanwhile is told.
        watching = _in_background(partial(notifier.follow, copier.tell, stop, copier.lost.is_set), "notify")
        try:
            done = _copied(copier, channel)
            console.event("synced", source=str(share.source), target=share.target, address=str(address), again=again)
            console.say(f"{share.source} is copied to {share.target} in {address}: {done}")
            if not again:
                console.say("what changes here is copied there, nothing is copied back; Ctrl-C ends it, the copy stays")
            _follow(copier)
        finally:
            stop.set()
            channel.close()
            watching.join()


def _follow(copier: Copier) -> None:
    """Copy what changes; returns when the session is lost, whatever notices that first."""
    try:
        copier.follow()
    except (OSError, EOFError, HostError, paramiko.SSHException):
        if not copier.lost.wait(DEAD_SECONDS):
            raise


def _copied(copier: Copier, channel: paramiko.Channel) -> str:
    try:
        return copier.copy_all()
    except HostError as error:
        said = channel.recv_stderr(4096).decode(errors="replace") if channel.recv_stderr_ready() else ""
        raise HostError(error.message + tail(said, SHOWN_LINES), hint=error.hint) from error


def _in_background(work: Callable[[], object], name: str) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread
