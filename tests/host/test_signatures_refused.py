"""Releases whose signatures, statements, files or signers are not what they should be: each is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.signing import (
    NAME,
    PROVENANCE,
    VERDICT,
    allow,
    check,
    export,
    home,
    keygen,
    nothing,
    release,
    signed,
    signed_once,
    statement,
)
from tests.unit.test_release import DAY, make
from vmimage.publish import dsse, ssh
from vmimage.publish.signatures import ALL, SIGNATURE, STATEMENTS, check_release, sign_release
from vmimage.publish.ssh import Trust
from vmimage.publish.sums import SUMS
from vmimage.util.errors import InputError, VerifyError

__all__ = ["export", "home", "release", "signed", "signed_once"]


def sparse(path: Path, size: int = 1 << 40) -> None:
    """Make a file of a size that takes no room."""
    path.touch()
    os.truncate(path, size)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", ["*.qcow2", "manifest.json", "README.md", SUMS, *ALL])
def test_file_that_is_changed_by_one_byte(name: str, where: float, signed: Path, home: Path) -> None:
    (path,) = signed.glob(name)
    data = path.read_bytes()
    path.write_bytes(flipped(data, int(where * (len(data) - 1))))
    with pytest.raises(VerifyError) as refused:
        check(signed, home)
    assert SUMS in refused.value.message or path.name in refused.value.message


@pytest.mark.parametrize("name", ["*.qcow2", "manifest.json", "README.md", SUMS, PROVENANCE, VERDICT])
@pytest.mark.parametrize("how", ["missing", "cut", "longer", "empty", "link", "pipe", "folder", "huge"])
def test_file_that_is_another_thing(how: str, name: str, signed: Path, home: Path, tmp_path: Path) -> None:
    (path,) = signed.glob(name)
    data = path.read_bytes()
    path.rename(tmp_path / "kept")
    makes: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "cut": lambda: path.write_bytes(data[:-1]),
        "longer": lambda: path.write_bytes(data + b"\n"),
        "empty": path.touch,
        "link": lambda: path.symlink_to(tmp_path / "kept"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "huge": lambda: sparse(path),
    }
    makes[how]()
    with pytest.raises(VerifyError):
        check(signed, home)


@pytest.mark.parametrize("how", ["link", "pipe", "huge", "empty", "folder"])
def test_signature_that_is_no_file_of_its_size(how: str, signed: Path, home: Path, tmp_path: Path) -> None:
    path = signed / SIGNATURE
    path.rename(tmp_path / "kept")
    if how == "link":
        path.symlink_to(tmp_path / "kept")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    else:
        sparse(path, (1 << 40) if how == "huge" else 0)
    with pytest.raises(VerifyError, match=SIGNATURE):
        check(signed, home)


def test_statement_of_another_release(export: Path, release: Path, home: Path, tmp_path: Path) -> None:
    other = make(export, tmp_path / "dist", today=DAY.replace(day=24)).path
    sign_release(release, home / "mine", nothing)
    sign_release(other, home / "mine", nothing)
    for name in STATEMENTS:
        own = (release / name).read_bytes()
        shutil.copy(other / name, release / name)
        with pytest.raises(VerifyError, match=rf"{re.escape(name)} is the statement of another release"):
            check(release, home)
        (release / name).write_bytes(own)
    shutil.copy(release / VERDICT, release / PROVENANCE)
    with pytest.raises(VerifyError, match=r"states https://in-toto\.io/attestation/test-result"):
        check(release, home)


def test_signature_of_another_release_or_file(export: Path, signed: Path, home: Path, tmp_path: Path) -> None:
    other = make(export, tmp_path / "dist", today=DAY.replace(day=24)).path
    sign_release(other, home / "mine", nothing)
    shutil.copy(other / SIGNATURE, signed / SIGNATURE)
    with pytest.raises(VerifyError, match="it is the signature of other bytes, or was changed"):
        check(signed, home)
    (signed / SIGNATURE).write_bytes(ssh.sign((signed / "README.md").read_bytes(), home / "mine", nothing))
    with pytest.raises(VerifyError, match="it is the signature of other bytes, or was changed"):
        check(signed, home)


def test_signature_of_a_key_that_is_not_allowed(release: Path, home: Path) -> None:
    sign_release(release, home / "other", nothing)
    with pytest.raises(VerifyError, match=r"the key SHA256:\S+, which \S+/allow-mine does not allow"):
        check(release, home)


@pytest.mark.parametrize("name", ALL)
def test_each_signature_counts_by_itself(name: str, signed: Path, home: Path, tmp_path: Path) -> None:
    """One of another key among good ones: of the sums, or of a statement."""
    copy = tmp_path / "copy"
    shutil.copytree(signed, copy, ignore=shutil.ignore_patterns(*ALL))
    sign_release(copy, home / "other", nothing)
    shutil.copy(copy / name, signed / name)
    with pytest.raises(VerifyError, match=rf"{re.escape(name)} was made with the key"):
        check(signed, home)


def test_signature_for_another_purpose(signed: Path, home: Path, tmp_path: Path) -> None:
    shutil.copy(signed / SUMS, tmp_path / SUMS)
    keygen("-q", "-Y", "sign", "-f", home / "mine", "-n", "git", tmp_path / SUMS)
    shutil.copy(tmp_path / SIGNATURE, signed / SIGNATURE)
    with pytest.raises(VerifyError, match="its namespace is 'git', not 'file'"):
        check(signed, home)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ('valid-before="20200101" ', "key has expired: verify time"),
        ('valid-after="20990101" ', "key is not yet valid"),
        ('namespaces="git" ', 'key is not permitted for use in signature namespace "file"'),
        ('unknown="x" ', "bad options"),
    ],
)
def test_key_that_is_allowed_something_else(options: str, why: str, signed: Path, home: Path, tmp_path: Path) -> None:
    allowed = allow(tmp_path / "allowed", home / "mine", options=options)
    for signer in ("", NAME):
        with pytest.raises(VerifyError, match=why) as refused:
            check_release(signed, Trust(allowed=allowed, signer=signer))
        assert "vmimage-verify-" not in refused.value.message, "it names the user's file"
        assert f"{allowed}:1" in refused.value.message


def test_key_that_is_revoked(signed: Path, home: Path, tmp_path: Path) -> None:
    keygen("-k", "-f", tmp_path / "krl", home / "mine.pub")
    keygen("-k", "-f", tmp_path / "krl-other", home / "other.pub")
    allowed = home / "allow-mine"
    for revoked in (tmp_path / "krl", home / "mine.pub"):
        with pytest.raises(VerifyError, match=rf"of {NAME}, which {re.escape(str(revoked))} revokes"):
            check_release(signed, Trust(allowed=allowed, revoked=revoked))
    for revoked in (tmp_path / "krl-other", home / "other.pub"):
        check_release(signed, Trust(allowed=allowed, revoked=revoked))


def test_only_one_of_the_allowed_may_count(signed: Path, home: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(
        (home / "allow-other").read_text() + "# us\n" + (home / "allow-mine").read_text().replace(NAME, "we@x,us@x")
    )
    assert check_release(signed, Trust(allowed=allowed)).signers[SIGNATURE].name == "we@x"
    assert check_release(signed, Trust(allowed=allowed, signer="us@x")).signers[VERDICT].name == "us@x"
    with pytest.raises(VerifyError, match=rf"is no signature of {NAME} with the key"):
        check_release(signed, Trust(allowed=allowed, signer=NAME))


def test_allowed_signers_that_cannot_be_used(signed: Path, home: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    sparse(tmp_path / "huge")
    for path, why in (
        ("none", "No such file"),
        ("pipe", "no regular file"),
        (".", "no regular file"),
        ("huge", "larger"),
    ):
        with pytest.raises(InputError, match=rf"--allowed-signers \S+: {why}"):
            check_release(signed, Trust(allowed=tmp_path / path))
        with pytest.raises(InputError, match=rf"--revoked \S+: {why}"):
            check_release(signed, Trust(allowed=home / "allow-mine", revoked=tmp_path / path))
    (tmp_path / "empty").touch()
    with pytest.raises(VerifyError, match="does not allow"):
        check_release(signed, Trust(allowed=tmp_path / "empty"))


def test_what_lies_beside_and_nobody_signed_is_told(signed: Path, home: Path) -> None:
    (signed / "install.sh").write_text("rm -rf /")
    assert check(signed, home).beside == ("install.sh",)


def resealed(folder: Path, name: str, change: Callable[[dict[str, Any]], object], key: Path) -> None:
    """Sign a changed statement with a good key: whoever signs may be wrong."""
    made = statement(folder, name)
    change(made)
    (folder / name).write_bytes(dsse.sealed(made, lambda data: ssh.sign(data, key, nothing)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda it: it["predicate"].update(result="FAILED"), "is no passing verdict: FAILED"),
        (lambda it: it["predicate"].pop("result"), "is no passing verdict"),
        (lambda it: it.update(subject=it["subject"] * 2), "a file twice"),
        (lambda it: it["subject"][0]["digest"].update(sha256="0" * 64), "of another release"),
        (lambda it: it.update(subject=[]), "no in-toto statement: subject"),
        (lambda it: it.update(_type="https://in-toto.io/Statement/v0.1"), "no in-toto statement: _type"),
        (lambda it: it.update(predicate="PASSED"), "no in-toto statement: predicate"),
    ],
)
def test_signed_statement_that_says_another_thing(
    change: Callable[[dict[str, Any]], object], why: str, signed: Path, home: Path
) -> None:
    resealed(signed, VERDICT, change, home / "mine")
    with pytest.raises(VerifyError, match=why):
        check(signed, home)


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.update(signatures=[]),
        lambda it: it.update(signatures=it["signatures"] * 2),
        lambda it: it.update(payloadType="text/plain"),
        lambda it: it.update(payload=it["payload"] + "="),
        lambda it: it.update(payload="!"),
        lambda it: it.update(more=1),
        lambda it: it.pop("payload"),
        lambda it: it["signatures"][0].update(keyid="SHA256:x"),
        lambda it: it["signatures"][0].update(sig="AAAA"),
        lambda it: it["signatures"][0].update(sig=7),
    ],
)
def test_envelope_that_is_another(change: Callable[[dict[str, Any]], object], signed: Path, home: Path) -> None:
    envelope = json.loads((signed / PROVENANCE).read_bytes())
    change(envelope)
    (signed / PROVENANCE).write_text(json.dumps(envelope))
    with pytest.raises(VerifyError, match=PROVENANCE):
        check(signed, home)


def test_errors_are_ours(signed: Path, home: Path) -> None:
    """Whatever the bytes of a signature are: no traceback."""
    data = (signed / SIGNATURE).read_bytes()
    body = data.split(b"\n")[1:-2]
    for text in (
        b"",
        b"x",
        data[:40],
        data * 2,
        b"\xff" * 90,
        data.replace(body[0], b""),
        data.replace(b"\n", b"\r\n"),
    ):
        (signed / SIGNATURE).write_bytes(text)
        with pytest.raises(VerifyError):
            check(signed, home)
