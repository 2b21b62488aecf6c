"""Where a running machine is, as its user says it on the command line."""

from __future__ import annotations

from typing import NamedTuple

from vmimage.access.login import Address
from vmimage.access.share import find_private_key


class Where(NamedTuple):
    """Options of the commands that log in; none of them is checked yet.

    Attributes:
        key: A private key file.
        host_key: The fingerprint that the machine must have.
    """

    host: str
    port: int
    key: str | None
    host_key: str | None
    kubernetes_port: int = 6443

    def address(self) -> Address:
        """Return the address that is meant.

        Raises:
            InputError: It is none.
        """
        return Address(host=self.host, port=self.port, key=find_private_key(self.key), host_key=self.host_key)
