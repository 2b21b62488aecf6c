"""What the user's ~/.ssh/config says of the keys for a machine, and nothing else of it.

Paramiko reads it, but gives up at a line that it does not understand, and knows no Include.
https://man.openbsd.org/ssh_config
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from vmimage.vm.limits import SSH_CONFIG_BYTES

SETTING = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(\S.*)")
LOOPBACK = ("127.0.0.1", "localhost")
# As in OpenSSH.
INCLUDES = 16
# What paramiko raises for values that it does not expect: a bad number, an unknown word of Match, names that do not
# resolve.
UNREAD = (OSError, paramiko.SSHException, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class KeySettings:
    """Where keys are.

    Attributes:
        files: Private keys; None where nothing is said, so that the usual ones count.
        agent: The socket of the agent; None where nothing is said, empty for none.
        only: Whether keys of the agent that are in none of the files are left alone.
    """

    files: list[Path] | None = None
    agent: str | None = None
    only: bool = False


def key_settings(host: str, home: Path, warn: Callable[[str], object]) -> KeySettings:
    """Return what ~/.ssh/config says for a host; this host counts by its name and by its address.

    Args:
        warn: Told of what is not used.
    """
    path = home / ".ssh" / "config"
    try:
        config = paramiko.SSHConfig.from_file(io.StringIO("\n".join(_lines(path, home, warn))))
        found = [config.lookup(name) for name in (LOOPBACK if host in LOOPBACK else (host,))]
    except FileNotFoundError:
        return KeySettings()
    except UNREAD as error:
        warn(f"{path} is not used: {error}")
        return KeySettings()
    for key in ("proxyjump", "proxycommand"):
        if any((each.get(key) or "none") != "none" for each in found):
            warn(f"{path}: {key} is not used: forward the machine's port by ssh, and name it with --ssh-port")
    files = [Path(_expanded(name, home)) for each in found for name in each.get("identityfile", [])]
    agent = next((each["identityagent"] for each in found if "identityagent" in each), None)
    return KeySettings(
        files=list(dict.fromkeys(file for file in files if file.name != "none")) if files else None,
        agent=_socket(agent, home) if agent else None,
        only=any(each.get("identitiesonly", "").lower() == "yes" for each in found),
    )


def _socket(agent: str, home: Path) -> str | None:
    """Return the socket that IdentityAgent names; None for the one of the environment."""
    if agent == "SSH_AUTH_SOCK":
        return None
    if agent == "none":
        return ""
    return os.environ.get(agent[1:].strip("{}"), "") if agent.startswith("$") else _expanded(agent, home)


def _expanded(name: str, home: Path) -> str:
    text = name.strip('"').replace("%d", str(home))
    return str(home / text[2:]) if text.startswith("~/") else text


def _lines(path: Path, home: Path, warn: Callable[[str], object], depth: int = 0) -> Iterator[str]:
    """Yield the lines of a file and of those that it includes, but for what paramiko would stumble over."""
    block = "Host *"
    for number, line in enumerate(_text(path).splitlines(), 1):
        match = SETTING.fullmatch(line.rstrip())
        if not match:
            if line.strip() and not line.lstrip().startswith("#"):
                warn(f"{path}:{number} is not used: {line.strip():.80}")
            continue
        key, value = match[1].lower(), match[2]
        if key == "include":
            if depth == INCLUDES:
                warn(f"{path}:{number} is not used: files include each other {INCLUDES} times")
                continue
            yield from _included(value, home, warn, depth)
            yield block
            continue
        block = line if key in ("host", "match") else block
        yield line


def _included(names: str, home: Path, warn: Callable[[str], object], depth: int) -> Iterator[str]:
    for name in names.split():
        pattern = Path(_expanded(name, home))
        base = Path(pattern.anchor) if pattern.is_absolute() else home / ".ssh"
        relative = pattern.relative_to(base) if pattern.is_absolute() else pattern
        for path in sorted(base.glob(str(relative))):
            try:
                yield from _lines(path, home, warn, depth + 1)
            except (OSError, ValueError) as error:
                warn(f"{path} is not used: {error}")


def _text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        OSError, ValueError: It cannot be read, or is larger than anybody's.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        data = file.read(SSH_CONFIG_BYTES + 1)
    if len(data) > SSH_CONFIG_BYTES:
        raise ValueError(f"larger than {SSH_CONFIG_BYTES >> 20} MiB")
    return data.decode()
