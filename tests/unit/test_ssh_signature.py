"""The text of a signature of ssh-keygen, and what it says of itself."""

from __future__ import annotations

import base64
import hashlib
import struct
import textwrap

import pytest

from vmimage.publish.ssh import read_signature
from vmimage.util.errors import VerifyError


def signature(key: bytes, namespace: bytes = b"file") -> bytes:
    """Return a signature as ssh-keygen writes it, without what it signs with."""

    def string(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    blob = b"SSHSIG" + struct.pack(">I", 1) + string(key) + string(namespace)
    lines = "\n".join(textwrap.wrap(base64.b64encode(blob).decode(), 70))
    return f"-----BEGIN SSH SIGNATURE-----\n{lines}\n-----END SSH SIGNATURE-----\n".encode()


def test_signatures_of_any_size() -> None:
    """Of some sizes, the last line is the padding alone."""
    last = set()
    for size in range(120):
        key = bytes(size)
        fingerprint = base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")
        assert read_signature(signature(key), "x") == f"SHA256:{fingerprint}"
        last.add(signature(key).splitlines()[-2])
    assert {b"=", b"=="} & last


@pytest.mark.parametrize("namespace", [b"", b"git", b"file\0", b"\xff\x1b[2J", b"file" * 999])
def test_signatures_for_another_purpose(namespace: bytes) -> None:
    with pytest.raises(VerifyError, match="x was made for another purpose: its namespace is ") as refused:
        read_signature(signature(b"key", namespace), "x")
    assert len(refused.value.message) < 300
