"""The names that a machine may have, and those of hosts where one answers."""

from __future__ import annotations

import ipaddress
import re

from vmimage.util.errors import InputError

LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
LENGTH = 253
# Of a name that is looked up; unlike that of a machine, it may have underscores, and a dot at its end.
LOOKED_UP = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def require_host(host: str, option: str) -> None:
    """Check the name or the address of a host before anybody is asked for it, or it becomes a part of a URL.

    Raises:
        InputError: It is none.
    """
    labels = host.removesuffix(".").split(".")
    good = len(host) <= LENGTH and all(LOOKED_UP.fullmatch(label) for label in labels)
    # What looks like an IPv4 address has to be one: 1.2.3 and 0x7f.1 mean others to some programs.
    if not good or re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1], re.IGNORECASE):
        try:
            ipaddress.ip_address(host)
            good = host.isprintable() and not re.search(r"[\s/?#@\[\]]", host)
        except ValueError:
            good = False
    if not good:
        raise InputError(
            f"{option} {host:.100}: neither the name of a host nor an address",
            hint="for example 192.168.56.10, ::1 or dev.example.org (other scripts as xn--…), without a port",
        )


def require_hostname(name: object, where: str) -> None:
    """Check a name by RFC 1123, section 2.1; it may have a domain.

    Args:
        where: The option or the key that says it.

    Raises:
        InputError: It is none.
    """
    labels = name.split(".") if isinstance(name, str) else []
    good = labels and len(str(name)) <= LENGTH and all(LABEL.fullmatch(label) for label in labels)
    # One whose last part is a number is taken for an address.
    if not good or (len(labels) > 1 and labels[-1].isdigit()):
        raise InputError(
            f"{where} {name!s:.100}: no name of a machine",
            hint="letters, digits and hyphens, 63 at most and no hyphen at an end: dev-env; dots before a domain",
        )
