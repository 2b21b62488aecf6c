"""The names that a machine may have."""

from __future__ import annotations

import re

from vmimage.util.errors import InputError

LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
LENGTH = 253


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
