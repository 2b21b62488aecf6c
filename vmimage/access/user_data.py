"""A cloud-config that somebody wrote, read so that the keys of a seed reach the user `dev` all the same.

cloud-init gives the keys at the top of a cloud-config to its default user, and to nobody where `users:` names others
alone. https://docs.cloud-init.io/en/latest/reference/modules.html#users-and-groups
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vmimage.access.hostname import require_hostname
from vmimage.access.login import USER
from vmimage.util.errors import InputError
from vmimage.util.yaml_bounds import require_bounded

HEADER = "#cloud-config"
LIMIT_BYTES = 1 << 20
NODES = 50_000
DOCS = "https://docs.cloud-init.io/en/latest/reference/examples.html shows what it may say"
# What else cloud-init takes, by how it begins. Nothing can be added to these, and so no key.
OTHER_KINDS = {
    b"\x1f\x8b": ("compressed", "unpack it first"),
    b"#!": ("a script", f"put it under `runcmd:` or `write_files:` of a {HEADER}"),
    b"#cloud-boothook": ("a boot hook", f"put its commands under `bootcmd:` of a {HEADER}"),
    b"#include": ("a list of addresses", f"download what they name, and put it into one {HEADER}"),
    b"#cloud-config-archive": ("an archive of parts", f"put its parts into one {HEADER}"),
    b"#cloud-config-jsonp": ("a JSON patch", f"write what it changes as a {HEADER}"),
    b"#part-handler": ("a part handler", f"the seed takes one {HEADER} alone"),
    b"## template:": ("a template", "write its values yourself; the first line is then " + HEADER),
    b"content-type:": ("MIME of several parts", f"put its parts into one {HEADER}"),
    b"mime-version:": ("MIME of several parts", f"put its parts into one {HEADER}"),
    b"from ": ("MIME of several parts", f"put its parts into one {HEADER}"),
}
# What PyYAML raises: the last ones for values that are not of the type that they name, such as `!!bool x`.
UNPARSED = (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, LookupError, OverflowError)
BOM = b"\xef\xbb\xbf"
# Without these, cloud-init makes no user and gives no key.
NEEDED_MODULES = {"cloud_init_modules": ("users_groups", "ssh")}


def read_user_data(path: Path) -> dict[str, object]:
    """Read a cloud-config.

    Raises:
        InputError: It is none; the line is named where there is one.
    """
    text = _text(path)
    if text.partition("\n")[0].rstrip().lower() != HEADER:
        raise InputError(f"{path}:1: the first line is not {HEADER}", hint="scripts go into its `runcmd:`")
    try:
        require_bounded(text, nodes=NODES)
        data = yaml.safe_load(text)
    except UNPARSED as error:
        raise InputError(
            f"{path} is not YAML: {error}", hint="correct it; indent with spaces, not with tabs"
        ) from error
    if not isinstance(data, dict | None):
        raise InputError(f"{path} is not a mapping", hint=DOCS)
    return data or {}


def with_keys(data: Mapping[str, object], keys: Sequence[str], path: Path) -> dict[str, Any]:
    """Return a cloud-config that gives keys to the user dev; pure.

    Its own keys come first.

    Args:
        path: Where it is from, for errors.

    Raises:
        InputError: cloud-init would give them to somebody else, or to nobody.
    """
    _require_default_user(data, path)
    _require_modules(data, path)
    own = _texts(data.get("ssh_authorized_keys"), f"{path}: ssh_authorized_keys")
    made = {**data, "ssh_authorized_keys": [*own, *keys]}
    if "users" in data:
        made["users"] = _with_user(data["users"], keys, path)
    return made


def _require_default_user(data: Mapping[str, object], path: Path) -> None:
    """Refuse what makes somebody else the user whose keys those at the top are."""
    renamed: list[tuple[str, object]] = [("user", data.get("user"))]
    system = data.get("system_info")
    if not isinstance(system, dict | None):
        raise InputError(f"{path}: system_info is not a mapping", hint=DOCS)
    if system:
        renamed.append(("system_info: default_user", system.get("default_user")))
    for key, value in renamed:
        name = value.get("name", USER) if isinstance(value, dict) else value
        if value and name != USER:
            raise InputError(
                f"{path}: {key}: {name!s:.100} takes the place of {USER}, who would have no key",
                hint=f"write `users: [default, {{name: …}}]` instead; {USER} is the default",
            )
        if isinstance(value, dict):
            _require_usable(value, f"{path}: {key}")


def _require_modules(data: Mapping[str, object], path: Path) -> None:
    """Refuse what turns off the parts of cloud-init that bring keys and names, or would make them fail."""
    for key, needed in NEEDED_MODULES.items():
        modules = data.get(key)
        if key in data and not set(needed) <= set(modules if isinstance(modules, list) else []):
            raise InputError(
                f"{path}: {key} leaves out {' or '.join(needed)}, which bring the keys", hint="leave it as it is"
            )
    for key in ("hostname", "fqdn"):
        if key in data:
            require_hostname(data[key], f"{path}: {key}:")


def _with_user(users: object, keys: Sequence[str], path: Path) -> object:
    """Return `users:` with dev among them, who has the keys."""
    where = f"{path}: users"
    if isinstance(users, str):
        return users if "default" in users.replace(",", " ").split() else f"default,{users}".rstrip(",")
    if isinstance(users, dict):
        entries = [
            {**entry, "name": name} if isinstance(entry, dict) else str(name) for name, entry in users.items() if entry
        ]
        return _with_user(entries, keys, path)
    if not isinstance(users, list | None):
        raise InputError(f"{where} is not a list", hint=DOCS)
    names = [name for entry in users or [] for name in _names(entry, where)]
    made = list(users or [])
    for index, entry in enumerate(made):
        # An entry without a name is of the default user.
        if isinstance(entry, dict) and entry.get("name", "default") in (USER, "default"):
            _require_usable(entry, f"{where}: {entry.get('name', 'default')}")
            own = _texts(entry.get("ssh_authorized_keys"), f"{where}: ssh_authorized_keys")
            made[index] = {**entry, "ssh_authorized_keys": [*own, *keys]}
    return made if "default" in names else ["default", *made]


def _names(entry: object, where: str) -> list[str]:
    if isinstance(entry, str):
        return entry.replace(",", " ").split()
    if isinstance(entry, dict) and isinstance(name := entry.get("name", "default"), str):
        return [name]
    raise InputError(f"{where}: {entry!r:.100} is no user", hint=DOCS)


def _require_usable(entry: Mapping[str, object], where: str) -> None:
    for key in ("ssh_redirect_user", "expiredate", "inactive", "system"):
        if entry.get(key):
            raise InputError(f"{where}: {key} keeps {USER} from logging in", hint="leave it out, or give another user")


def _texts(value: object, where: str) -> list[str]:
    """Return one text, or several."""
    if isinstance(value, str):
        return [value]
    if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise InputError(f"{where} is not a list of keys", hint="one public key an entry: `- ssh-ed25519 …`")
    return list(value or [])


def _text(path: Path) -> str:
    """Return the text of a cloud-config.

    Raises:
        InputError: It cannot be read, or is something else that cloud-init takes.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}", hint="name a cloud-config") from error
    if len(data) > LIMIT_BYTES:
        raise InputError(f"{path} is larger than {LIMIT_BYTES >> 20} MiB", hint="fetch large files by `runcmd:`")
    data = data.removeprefix(BOM)
    begins = data[:64].lstrip().lower()
    for start in sorted(OTHER_KINDS, key=len, reverse=True):
        if begins.startswith(start):
            kind, hint = OTHER_KINDS[start]
            raise InputError(f"{path}:1: the first line is not {HEADER}: it is {kind}", hint=hint)
    try:
        return data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: {error}", hint="save it as UTF-8") from error
