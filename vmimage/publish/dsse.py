"""DSSE envelopes: a statement, and the signature of its bytes together with their type.

Source: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md and envelope.md. The signature is the text
that ssh-keygen writes to a file, so that it can be checked without us.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from vmimage.publish import AGAIN, ssh
from vmimage.publish.ssh import Signer, Trust
from vmimage.util.errors import VerifyError
from vmimage.util.json_file import parse_json
from vmimage.util.model import Model

PAYLOAD_TYPE: Literal["application/vnd.in-toto+json"] = "application/vnd.in-toto+json"
MOST_ENVELOPE = 16 << 20
Base64 = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class Signature(Model):
    """Who signed, as the fingerprint of the key, and the signature."""

    keyid: Annotated[str, StringConstraints(max_length=100)]
    sig: Base64


class Envelope(Model):
    """A payload, and the only signature of it."""

    payload: Base64
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815 - the name in the format
    signatures: list[Signature] = Field(min_length=1, max_length=1)


def pae(payload: bytes) -> bytes:
    """Return what is signed: the pre-authentication encoding of a payload and its type."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sealed(statement: Mapping[str, object], signature_of: ssh.Sign) -> bytes:
    """Return a statement in its envelope, as one line of JSON."""
    payload = json.dumps(statement, ensure_ascii=False, separators=(",", ":")).encode()
    signature = signature_of(pae(payload))
    keyid = ssh.read_signature(signature, "the signature")
    return _line(
        Envelope(
            payload=base64.b64encode(payload).decode(),
            payloadType=PAYLOAD_TYPE,
            signatures=[Signature(keyid=keyid, sig=base64.b64encode(signature).decode())],
        )
    )


def _line(envelope: Envelope) -> bytes:
    return json.dumps(envelope.model_dump(), separators=(",", ":")).encode() + b"\n"


def opened(data: bytes, trust: Trust | None, what: str) -> tuple[object, Signer]:
    """Return what an envelope holds, as JSON, and who signed it.

    Args:
        trust: Whose signatures count, see `ssh.verify`.
        what: What the envelope is called in errors.

    Raises:
        VerifyError: It is no envelope, or nobody who counts has signed this payload.
    """
    try:
        envelope = Envelope.model_validate(parse_json(data))
        payload, signature = _decoded(envelope.payload), _decoded(envelope.signatures[0].sig)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        where = ".".join(map(str, details["loc"]))
        raise VerifyError(f"{what} is no DSSE envelope: {where}: {details['msg']}", hint=AGAIN) from None
    except ValueError as error:
        raise VerifyError(f"{what} is no DSSE envelope: {error}", hint=AGAIN) from None
    if _line(envelope) != data:
        raise VerifyError(f"{what} is not the line that was written: another program wrote it again", hint=AGAIN)
    signer = ssh.verify(pae(payload), signature, trust, what)
    if envelope.signatures[0].keyid != signer.fingerprint:
        raise VerifyError(f"{what} names another key than the one that signed it", hint=AGAIN)
    try:
        return parse_json(payload), signer
    except ValueError as error:
        raise VerifyError(f"{what} holds no statement: {error}", hint=AGAIN) from None


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from None
    if base64.b64encode(data).decode() != text:
        raise ValueError("no base64 that a program writes")
    return data
