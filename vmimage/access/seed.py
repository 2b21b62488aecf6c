"""`invoke seed`: a NoCloud disk that gives a machine its keys and user data, in any hypervisor."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from vmimage.access.hostname import require_hostname
from vmimage.access.nocloud import require_nocloud
from vmimage.access.user_data import read_user_data, with_keys
from vmimage.util.errors import HostError, InputError
from vmimage.util.files import expanded, written_beside
from vmimage.vm.machine import write_seed


def make_seed(to: Path, *, public_keys: Sequence[str], hostname: str, user_data: Path | None, force: bool) -> None:
    """Write a seed; every one counts as a new instance, so a machine takes its keys even if it had a seed before.

    Args:
        force: Replace a file that is there.

    Raises:
        InputError: The file exists, the name is no machine's, or the user data would keep the keys from dev.
        HostError: The file cannot be written.
    """
    require_hostname(hostname, "--hostname")
    if os.path.lexists(to) and not force:
        raise InputError(f"{to} exists", hint="remove it, give another name with --output, or say --force")
    if os.path.lexists(to) and not (to.is_file() or to.is_symlink()):
        raise InputError(f"{to} is no file", hint="give another name with --output")
    keys = [line.strip() for key in public_keys for line in key.splitlines() if line.strip()]
    more = with_keys(read_user_data(user_data), keys, user_data) if user_data else {"ssh_authorized_keys": keys}
    identity = f"seed-{secrets.token_hex(4)}"
    try:
        # User data may hold secrets.
        with written_beside(to, mode=0o600) as work:
            write_seed(work, public_keys=[], hostname=hostname, instance_id=identity, user_data=more)
    except OSError as error:
        raise HostError(f"{to} cannot be written: {error}", hint="give another name with --output") from error


def existing_seed(given: str) -> Path:
    """Return the seed that the user named.

    Raises:
        InputError: There is no such file, or it is no NoCloud seed.
    """
    path = expanded(given, "--seed").absolute()
    if not path.is_file():
        raise InputError(f"--seed {given}: no file", hint="`invoke seed` writes one")
    try:
        require_nocloud(path)
    except OSError as error:
        raise InputError(f"--seed {given}: {error.strerror}", hint="name a file that you may read") from error
    except ValueError as error:
        raise InputError(f"--seed {given}: no NoCloud seed: {error}", hint="`invoke seed` writes one") from error
    return path
