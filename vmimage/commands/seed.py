"""`invoke seed`: a disk that gives a machine its keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vmimage.access.seed import make_seed
from vmimage.commands.run_image import find_public_keys
from vmimage.commands.session import errors_shown
from vmimage.util.console import Console
from vmimage.util.files import expanded, home


def write_a_seed(ssh_keys: Sequence[str], to: Path, *, hostname: str, user_data: str | None, force: bool) -> None:
    """Write a seed, and print what to do with it.

    Args:
        ssh_keys: Files with public keys; the user's own when none is given.
    """
    console = Console()
    with errors_shown(console):
        keys_folder = home() / ".ssh"
        named: Sequence[str | None] = ssh_keys or [None]
        keys = [key for given in named for key in find_public_keys(given, keys_folder)]
        extra = expanded(user_data, "--user-data") if user_data else None
        make_seed(to, public_keys=keys, hostname=hostname, user_data=extra, force=force)
        console.say(f"written: {to}; attach it to the machine as a CD or a second disk")
