"""A machine that runs somewhere, as its user reaches it: by ssh, usually through a port of localhost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from vmimage.util.errors import HostError, InputError
from vmimage.util.ports import require_port

USER = "dev"
SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a machine answers ssh, and who logs in.

    Attributes:
        key: A private key; the ssh agent and the keys of `~/.ssh` when not given.
    """

    host: str = "127.0.0.1"
    port: int = 2222
    user: str = USER
    key: Path | None = None

    def __post_init__(self) -> None:
        require_port(self.port, "--ssh-port")

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


@contextlib.contextmanager
def log_in(address: Address, known_hosts: Path) -> Iterator[paramiko.SSHClient]:
    """Open an ssh session.

    Every new machine makes host keys of its own, so the first key that is seen at an address is kept in a file of this
    project, not in the user's `~/.ssh/known_hosts`, and another one is refused later.

    Raises:
        InputError: Another machine than the one seen before answers, or none of the keys is let in.
        HostError: Nothing answers there.
    """
    known_hosts.parent.mkdir(parents=True, exist_ok=True)
    known_hosts.touch(mode=0o600)
    client = paramiko.SSHClient()
    client.load_host_keys(str(known_hosts))
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())  # noqa: S507 - kept, and compared from then on
    with contextlib.closing(client):
        try:
            client.connect(
                address.host,
                address.port,
                address.user,
                key_filename=str(address.key) if address.key else None,
                timeout=SECONDS,
                banner_timeout=SECONDS,
                auth_timeout=SECONDS,
                allow_agent=address.key is None,
                look_for_keys=address.key is None,
            )
        except paramiko.BadHostKeyException as error:
            raise InputError(
                f"another machine than before answers at {address}",
                hint=f"if you started a new one there, remove the line of {error.hostname} from {known_hosts}",
            ) from error
        except paramiko.AuthenticationException as error:
            raise InputError(
                f"{address} lets none of your keys in", hint="name the private key that it knows with --ssh-key"
            ) from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise HostError(
                f"no machine answers ssh at {address}: {error}",
                hint="start one (`invoke run`, VirtualBox, …), or name its port with --ssh-port",
            ) from error
        yield client
