"""SHA256SUMS of a release signed by GPG and by minisign, where these are installed."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.signing import check, export, home, listed, nothing, release, signed, signed_once
from vmimage import PROJECT
from vmimage.publish import programs
from vmimage.publish.programs import find_program
from vmimage.publish.signatures import sign_release, sign_sums
from vmimage.util.errors import HostError, InputError, VerifyError

__all__ = ["export", "home", "release", "signed", "signed_once"]


LOCKED = f"untrusted comment: x\n{base64.b64encode(b'EdScB2' + bytes(152)).decode()}\n"
"""What minisign takes for a secret key with a password until it has the password; to make one takes many seconds."""


def tool(name: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    path = shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not installed")
    return subprocess.run([path, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


@pytest.fixture
def gpg_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys of GPG: one without a passphrase, one with."""
    folder = tmp_path_factory.mktemp("g")
    folder.chmod(0o700)
    # Else it measures this host, for as many rounds as take a tenth of a second.
    (folder / "gpg-agent.conf").write_text("s2k-count 65536\n")
    monkeypatch.setenv("GNUPGHOME", str(folder))
    for name, passphrase in (("me@example.org", ""), ("locked@example.org", "secret")):
        argv = ["--batch", "--pinentry-mode", "loopback", "--passphrase", passphrase, "--quick-gen-key", name]
        made = tool("gpg", *argv, "ed25519", "sign")
        assert made.returncode == 0, made.stderr
    tool("gpgconf", "--kill", "gpg-agent")
    yield
    tool("gpgconf", "--kill", "all")


def command_of(name: str) -> list[str]:
    """Return the command by which the docs check a signature."""
    text = (PROJECT / "docs" / "verifying-downloads.md").read_text()
    found = re.search(rf"`{name} (-+[^`]*)`", text.partition("Each is checked by its own program")[2])
    assert found
    return found[1].split()


def require_whole(folder: Path, before: dict[str, bytes], name: str, checks: Callable[[], int]) -> None:
    """Check that exactly one file was added, and that it is a signature of these bytes."""
    after = listed(folder)
    assert after.keys() - before.keys() == {name}
    assert {each: after[each] for each in before} == before
    assert checks() == 0
    (folder / "SHA256SUMS").write_bytes(before["SHA256SUMS"] + b"\n")
    assert checks() != 0


def test_gpg(release: Path, gpg_home: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listed(release)
    program = find_program("gpg")
    for key, why in (("locked@example.org", "has a passphrase, and nothing asks"), ("nobody", "does not sign with")):
        with pytest.raises(InputError, match=why):
            sign_sums(release, program, key)
        assert listed(release) == before
    sign_sums(release, program, "me@example.org")
    with pytest.raises(InputError, match=r"SHA256SUMS\.asc is there already"):
        sign_sums(release, program, "me@example.org")
    monkeypatch.chdir(release)
    require_whole(release, before, "SHA256SUMS.asc", lambda: tool("gpg", *command_of("gpg")).returncode)


def test_minisign(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tool("minisign", "-G", "-W", "-p", "KEY.pub", "-s", "key").returncode == 0
    Path("locked").write_text(LOCKED)
    before = listed(release)
    program = find_program("minisign")
    for key, why in (("locked", "has a passphrase, and nothing asks"), ("none", "there is no key")):
        with pytest.raises(InputError, match=why):
            sign_sums(release, program, key)
        assert listed(release) == before
    sign_sums(release, program, "key")
    monkeypatch.chdir(release)
    argv = [str(tmp_path / each) if each == "KEY.pub" else each for each in command_of("minisign")]
    require_whole(release, before, "SHA256SUMS.minisig", lambda: tool("minisign", *argv).returncode)


def test_programs_that_are_missing_or_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="minisign is not installed"):
        find_program("minisign")
    with pytest.raises(InputError, match="--with pgp: unknown"):
        find_program("pgp")


def test_nothing_is_signed_that_is_no_whole_release(release: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "run", lambda *_, **__: pytest.fail("it was asked to sign"))
    (release / "README.md").write_text("x")
    with pytest.raises(VerifyError, match=r"README\.md is not the file"):
        sign_sums(release, programs.PROGRAMS["gpg"], "me")


def test_they_go_beside_a_signature_of_ssh(release: Path, home: Path) -> None:
    (release / "SHA256SUMS.asc").write_text("of gpg")
    sign_release(release, home / "mine", nothing)
    assert check(release, home).beside == ()
