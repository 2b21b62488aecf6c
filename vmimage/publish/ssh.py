"""Signatures of ssh-keygen, which makes and checks them. No private key is read here: its name is handed on.

Source: PROTOCOL.sshsig of OpenSSH, and ALLOWED SIGNERS in ssh-keygen(1).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmimage import host
from vmimage.publish import AGAIN
from vmimage.util.errors import HostError, InputError, VerifyError
from vmimage.util.files import read_regular
from vmimage.util.run import Completed, run, tail

NAMESPACE = "file"
"""Of signatures of files, see ssh-keygen(1): one that was made for another purpose is refused."""
SIGN_SECONDS = 120.0
"""A security key waits to be touched."""
CHECK_SECONDS = 20.0
MOST_SIGNATURE = 64 << 10
MOST_SIGNERS = 4 << 20
MOST_SAID = 64 << 10
SHOWN_LINES = 4
MAGIC = b"SSHSIG"
ARMOR = re.compile(rb"-----BEGIN SSH SIGNATURE-----\n((?:[A-Za-z0-9+/=]+\n)+)-----END SSH SIGNATURE-----\n")
Sign = Callable[[bytes], bytes]
"""What returns the signature of some bytes."""
NO_ANSWER = "Could not verify signature."


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose signatures count.

    Attributes:
        allowed: A file of allowed signers.
        revoked: A key revocation list, or public keys, one a line.
        signer: The only one of the allowed who counts; anyone of them without it.
    """

    allowed: Path
    revoked: Path | None = None
    signer: str = ""


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signed: the name in front of the key in the file of allowed signers, and the fingerprint of the key."""

    name: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint})"


# --- To sign ---------------------------------------------------------------------------------------------


def require_key(key: Path, tell: Callable[[str], object]) -> str:
    """Check that a key can sign, by a trial; one that has to be touched is only looked for. Returns its fingerprint.

    Args:
        key: A private key, or the public one whose private half ssh-agent holds.

    Raises:
        InputError: It cannot, with the reason.
        HostError: ssh-keygen is missing or too old.
    """
    fingerprint, kind = _known(key)
    if not kind.endswith("-SK"):
        sign(b"a trial\n", key, tell)
    return fingerprint


def fingerprint_of(key: Path) -> str:
    """Return the fingerprint of a key; errors as those of `require_key`."""
    return _known(key)[0]


def _known(key: Path) -> tuple[str, str]:
    """Return the fingerprint and the kind of a key, as ssh-keygen tells them."""
    if not key.is_file():
        raise InputError(
            f"there is no key {key}",
            hint="name a private key of ssh, or the public one (.pub) whose private half ssh-agent holds",
        )
    done = _keygen("-l", "-f", key)
    found = re.search(r"(SHA256:\S+) .*\((\S+)\)$", done.output, re.MULTILINE)
    if done.returncode or not found:
        raise InputError(
            f"{key} is no key of ssh:{tail(done.output, SHOWN_LINES)}", hint="`ssh-keygen -t ed25519` makes one"
        )
    return found[1], found[2]


def sign(data: bytes, key: Path, tell: Callable[[str], object]) -> bytes:
    """Return the signature of some bytes, as ssh-keygen writes it to a file. Nothing asks for a passphrase.

    Args:
        tell: Called with what ssh-keygen asks somebody to do: to touch a security key.

    Raises:
        InputError: The key cannot sign, with the reason.
        HostError: ssh-keygen is missing, too old, or waited for longer than SIGN_SECONDS.
    """

    def on_line(line: str) -> None:
        if "presence" in line:
            tell(line)

    with tempfile.TemporaryDirectory(prefix="vmimage-sign-") as scratch:
        file = Path(scratch, "data")
        file.write_bytes(data)
        done = _keygen("-Y", "sign", "-f", key, "-n", NAMESPACE, file, timeout=SIGN_SECONDS, on_line=on_line)
        if done.returncode:
            raise _unable(key, done.output)
        return read_regular(file.with_name("data.sig"), MOST_SIGNATURE)


def _unable(key: Path, said: str) -> InputError:
    if "incorrect passphrase" in said:
        return InputError(
            f"{key} has a passphrase, and nothing asks for it here", hint=f"`ssh-add {key}` first: then the agent signs"
        )
    if "No private key found for public key" in said:
        return InputError(
            f"{key} is a public key, and neither ssh-agent nor a file beside it has its private half",
            hint="`ssh-add -l` shows what the agent holds; SSH_AUTH_SOCK says where it is",
        )
    return InputError(f"{key} does not sign:{tail(said, SHOWN_LINES)}", hint="does `ssh-keygen -Y sign` with it?")


# --- To check --------------------------------------------------------------------------------------------


def verify(data: bytes, signature: bytes, trust: Trust | None, what: str) -> Signer:
    """Check that bytes were signed by somebody whose signatures count.

    Args:
        trust: Without it, whoever signed counts, and has no name.
        what: What the signature is called in errors.

    Raises:
        VerifyError: They were not, with the reason.
        InputError: The files of `trust` cannot be used.
        HostError: ssh-keygen is missing or too old.
    """
    fingerprint = read_signature(signature, what)
    with tempfile.TemporaryDirectory(prefix="vmimage-verify-") as scratch:
        check = _Check(Path(scratch), data, signature, trust)
        if not trust:
            done = check.ask("check-novalidate")
            if done.returncode:
                raise VerifyError(f"{what}: {_reason(done.output)}", hint=AGAIN)
            return Signer(name="", fingerprint=fingerprint)
        names = [trust.signer] if trust.signer else check.principals()
        if not names:
            raise VerifyError(
                f"{what} was made with the key {fingerprint}, which {trust.allowed} does not allow"
                f"{check.why('find-principals')}",
                hint="get the file of allowed signers from the publisher again, not from where the release comes from",
            )
        check.require(names[0], fingerprint, what)
        return Signer(name=names[0], fingerprint=fingerprint)


def read_signature(signature: bytes, what: str) -> str:
    """Return the fingerprint of the key that a signature says it is of.

    Raises:
        VerifyError: It is none of ssh-keygen, or one for another purpose.
    """
    found = ARMOR.fullmatch(signature)
    text = found[1].replace(b"\n", b"") if found else b""
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error:
        blob = b""
    # A text that reads as the same signature is another file than the one that was published.
    if not blob.startswith(MAGIC) or base64.b64encode(blob) != text:
        raise VerifyError(f"{what} is no signature of ssh-keygen, or was changed", hint=AGAIN)
    from paramiko import Message

    message = Message(blob[len(MAGIC) :])
    message.get_int()
    key, namespace = message.get_binary(), message.get_binary().decode(errors="replace")
    if namespace != NAMESPACE:
        raise VerifyError(
            f"{what} was made for another purpose: its namespace is {namespace[:40]!r}, not {NAMESPACE!r}", hint=AGAIN
        )
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).rstrip(b"=").decode()


class _Check:
    """Questions to ssh-keygen about one signature. It is given copies: what is checked cannot change meanwhile."""

    def __init__(self, folder: Path, data: bytes, signature: bytes, trust: Trust | None) -> None:
        self._data, self._signature, self._allowed = folder / "data", folder / "signature", folder / "allowed"
        self._trust = trust
        self._data.write_bytes(data)
        self._signature.write_bytes(signature)
        self._revoked: list[str | Path] = []
        if trust:
            self._allowed.write_bytes(_trusted(trust.allowed, "--allowed-signers"))
        if trust and trust.revoked:
            (folder / "revoked").write_bytes(_trusted(trust.revoked, "--revoked"))
            self._revoked = ["-r", folder / "revoked"]

    def ask(self, *action: str | Path) -> Completed:
        """Let ssh-keygen do `-Y ACTION …` with the signature, and the data at its standard input."""
        with self._data.open("rb") as file:
            return _keygen("-Y", *action, "-n", NAMESPACE, "-s", self._signature, stdin=file.fileno())

    def principals(self) -> list[str]:
        """Return the names of the allowed signers who have this key."""
        done = self.ask("find-principals", "-f", self._allowed)
        # What is wrong with other lines of the file is said between them.
        lines = [line for line in done.output.splitlines() if not line.startswith((f"{self._allowed}:", "!"))]
        return lines if not done.returncode else []

    def why(self, *action: str | Path) -> str:
        """Return what ssh-keygen says against lines of the file of allowed signers."""
        said = self.ask(*action, "-f", self._allowed).output
        return tail("\n".join(self._shown(said)), SHOWN_LINES)

    def _shown(self, said: str) -> list[str]:
        allowed = str(self._trust.allowed) if self._trust else ""
        return [line.replace(str(self._allowed), allowed) for line in said.splitlines() if str(self._allowed) in line]

    def require(self, name: str, fingerprint: str, what: str) -> None:
        """Check the signature as that of an allowed signer.

        Raises:
            VerifyError: It is not.
        """
        assert self._trust  # noqa: S101 - the caller looked
        done = self.ask("verify", "-f", self._allowed, "-I", name, *self._revoked)
        if not done.returncode:
            return
        if self._revoked and not self.ask("verify", "-f", self._allowed, "-I", name).returncode:
            raise VerifyError(
                f"{what} was made with the key {fingerprint} of {name}, which {self._trust.revoked} revokes",
                hint="use a release that is signed with the publisher's new key",
            )
        against = self._shown(done.output)
        reason = tail("\n".join(against), SHOWN_LINES) if against else f": {_reason(done.output)}"
        raise VerifyError(
            f"{what} is no signature of {name} with the key {fingerprint} that {self._trust.allowed} allows{reason}",
            hint=AGAIN,
        )


def _reason(said: str) -> str:
    if "incorrect signature" in said:
        return "it is the signature of other bytes, or was changed"
    lines = [line for line in said.splitlines() if line.strip() and line != NO_ANSWER]
    return lines[-1] if lines else "ssh-keygen does not take it"


def _trusted(path: Path, option: str) -> bytes:
    """Read a file of the user's own."""
    try:
        return read_regular(path, MOST_SIGNERS, follow=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{option} {path}: {why}", hint="docs/verifying-downloads.md says what such a file is"
        ) from None


def _keygen(
    *args: str | Path,
    timeout: float | None = None,
    stdin: int = subprocess.DEVNULL,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run ssh-keygen to its end, without a terminal.

    Args:
        timeout: Seconds until it is killed (default CHECK_SECONDS).
    """
    timeout = timeout or CHECK_SECONDS
    host.require(["ssh"])
    if not shutil.which("ssh-keygen"):
        raise HostError("ssh-keygen is not installed", hint="run `./bootstrap`, or `apt-get install openssh-client`")
    done = run(
        ["ssh-keygen", *args],
        # It would ask by a window, where there is one.
        env={"SSH_ASKPASS_REQUIRE": "never"},
        cwd=Path("/"),
        stdin=stdin,
        timeout=timeout,
        check=False,
        on_line=on_line,
        most_output=MOST_SAID,
        error=HostError,
    )
    if done.returncode and done.seconds >= timeout:
        raise HostError(f"ssh-keygen did not end within {timeout:.0f} s", hint="does a security key wait for a touch?")
    return done
