"""`invoke seed`: a NoCloud disk that gives a machine its keys and user data, in any hypervisor."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import yaml

from vmimage.util.errors import InputError
from vmimage.util.files import written_beside
from vmimage.vm.machine import write_seed

HEADER = "#cloud-config"


def make_seed(to: Path, *, public_keys: Sequence[str], hostname: str, user_data: Path | None, force: bool) -> None:
    """Write a seed; every one counts as a new instance, so a machine takes its keys even if it had a seed before.

    Raises:
        InputError: The file exists, or the user data is not what cloud-init takes.
    """
    if to.exists() and not force:
        raise InputError(f"{to} exists", hint="remove it, give another name with --output, or say --force")
    more = read_user_data(user_data) if user_data else {}
    identity = f"seed-{secrets.token_hex(4)}"
    # User data may hold secrets.
    with written_beside(to, mode=0o600) as work:
        write_seed(work, public_keys=public_keys, hostname=hostname, instance_id=identity, user_data=more)


def existing_seed(given: str) -> Path:
    """Return the seed that the user named.

    Raises:
        InputError: There is no such file.
    """
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"--seed {given}: no file", hint="`invoke seed` writes one")
    return path


def read_user_data(path: Path) -> dict[str, object]:
    """Read a cloud-config.

    Raises:
        InputError: It is none; the line is named where there is one.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="name a cloud-config") from error
    if text.splitlines()[:1] != [HEADER]:
        raise InputError(f"{path}:1: the first line is not {HEADER}", hint="scripts go into its `runcmd:`")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}", hint="correct it") from error
    if not isinstance(data, dict | None):
        raise InputError(f"{path} is not a mapping", hint="https://cloudinit.readthedocs.io shows what it may say")
    return data or {}
