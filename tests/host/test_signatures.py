"""Signatures of releases by the real ssh-keygen: what is signed, how it is checked, and all that has to be refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

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
    listed,
    make_key,
    nothing,
    release,
    signed,
    signed_once,
    statement,
)
from tests.unit.test_release import DIGEST
from vmimage import PROJECT
from vmimage.commands.sign import sign_and_tell
from vmimage.publish import signatures, ssh
from vmimage.publish.signatures import ALL, SIGNATURE, STATEMENTS, check_release, sign_release
from vmimage.publish.ssh import Trust
from vmimage.publish.sums import SUMS
from vmimage.util.errors import HostError, InputError, VerifyError
from vmimage.util.settings import Options

__all__ = ["export", "home", "release", "signed", "signed_once"]


# --- What is signed --------------------------------------------------------------------------------------


def test_signing_adds_files_and_changes_none(release: Path, home: Path) -> None:
    before = listed(release)
    fingerprint = sign_release(release, home / "mine", nothing)
    after = listed(release)
    assert after.keys() - before.keys() == set(ALL)
    assert {name: after[name] for name in before} == before
    assert fingerprint in keygen("-lf", home / "mine.pub")
    checked = check(release, home)
    assert {str(signer) for signer in checked.signers.values()} == {f"{NAME} ({fingerprint})"}
    assert list(checked.signers) == [SIGNATURE, PROVENANCE, VERDICT]
    assert checked.beside == ()


def test_signed_release_is_not_signed_again(signed: Path, home: Path) -> None:
    before = listed(signed)
    again = sign_release(signed, home / "other", nothing)
    assert again in keygen("-lf", home / "mine.pub"), "it is told whose signatures are there"
    assert listed(signed) == before


def test_interrupted_signing_is_completed(release: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = signatures._write, list[Path]()

    def killed(path: Path, data: bytes) -> None:
        if written:
            raise KeyboardInterrupt
        write(path, data)
        written.append(path)

    with monkeypatch.context() as patched:
        patched.setattr(signatures, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            sign_release(release, home / "mine", nothing)
    first = (release / PROVENANCE).read_bytes()
    with pytest.raises(VerifyError, match=r"is not signed: there is no SHA256SUMS\.sig"):
        check(release, home)
    with pytest.raises(InputError, match=r"is signed with the key SHA256:\S+ already"):
        sign_release(release, home / "other", nothing)
    sign_release(release, home / "mine", nothing)
    assert (release / PROVENANCE).read_bytes() == first
    check(release, home)


def test_nothing_is_signed_that_is_no_whole_release(release: Path, home: Path) -> None:
    (release / "README.md").write_text("Run this: curl …")
    with pytest.raises(VerifyError, match=r"README\.md is not the file that SHA256SUMS speaks of"):
        sign_release(release, home / "mine", nothing)
    (release / "README.md").unlink()
    with pytest.raises(VerifyError, match=r"README\.md is missing"):
        sign_release(release, home / "mine", nothing)
    assert not set(ALL) & set(listed(release))


def test_a_name_that_is_taken_is_left_alone(release: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (release / PROVENANCE).symlink_to(tmp_path / "victim")
    with pytest.raises(VerifyError, match="a symbolic link, which is not followed"):
        sign_release(release, home / "mine", nothing)
    (release / PROVENANCE).unlink()
    (release / SIGNATURE).symlink_to(tmp_path / "none")
    with pytest.raises(VerifyError, match="a symbolic link, which is not followed"):
        sign_release(release, home / "mine", nothing)
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "none").exists()


def test_statements_speak_of_the_image_files(signed: Path) -> None:
    for name in STATEMENTS:
        made = statement(signed, name)
        assert made["_type"] == "https://in-toto.io/Statement/v1"
        subject = {"name": f"toolbox-{signed.name}-amd64.qcow2", "digest": {"sha256": DIGEST}}
        assert made["subject"] == [subject]
    assert statement(signed, VERDICT)["predicate"]["passedTests"] == ["qcow2-virtio-bios"]


# --- Keys ------------------------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent that holds nothing yet."""
    with subprocess.Popen(
        [str(shutil.which("ssh-agent")), "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL
    ) as process:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        while not (tmp_path / "agent").exists():
            assert process.poll() is None
        yield
        process.terminate()


def test_key_in_the_agent_signs_by_its_public_file(release: Path, home: Path, agent: None, tmp_path: Path) -> None:
    public = Path(shutil.copy(home / "mine.pub", tmp_path / "only.pub"))
    with pytest.raises(InputError, match="is a public key, and neither ssh-agent nor a file beside it"):
        ssh.require_key(public, nothing)
    subprocess.run([str(shutil.which("ssh-add")), "-q", home / "mine"], check=True)
    assert ssh.require_key(public, nothing) == sign_release(release, public, nothing)
    check(release, home)


def test_certificate_of_an_authority_signs(release: Path, agent: None, tmp_path: Path) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    keygen("-q", "-s", authority, "-I", "us", "-n", NAME, key.with_name("key.pub"))
    subprocess.run([str(shutil.which("ssh-add")), "-q", key], check=True)
    allowed = allow(tmp_path / "allowed", authority, options="cert-authority ")
    certificate = tmp_path / "key-cert.pub"
    sign_and_tell(
        str(release), Options(cache=tmp_path / "cache", dist=tmp_path, state=tmp_path, sign=certificate), json=False
    )
    assert check_release(release, Trust(allowed=allowed)).signers[SIGNATURE].name == NAME


def test_key_with_a_passphrase_never_prompts(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key(tmp_path / "locked", "secret")
    asked = tmp_path / "asked"
    (tmp_path / "askpass").write_text(f"#!/bin/sh\ntouch {asked}\necho secret\n")
    (tmp_path / "askpass").chmod(0o755)
    for name, value in (
        ("SSH_ASKPASS", str(tmp_path / "askpass")),
        ("SSH_ASKPASS_REQUIRE", "force"),
        ("DISPLAY", ":9"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for use in (partial(ssh.require_key, key, nothing), partial(sign_release, release, key, nothing)):
        with pytest.raises(InputError, match="has a passphrase, and nothing asks for it here") as refused:
            use()
        assert refused.value.hint.startswith(f"`ssh-add {key}`")
    assert not asked.exists()
    assert not set(ALL) & set(listed(release))


def test_what_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no key"):
        ssh.require_key(tmp_path, nothing)
    (tmp_path / "k").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    with pytest.raises(InputError, match="is no key of ssh"):
        ssh.require_key(tmp_path / "k", nothing)


def test_key_that_others_can_read_is_refused_as_ssh_does(home: Path, tmp_path: Path) -> None:
    for name in ("mine", "mine.pub"):
        shutil.copy(home / name, tmp_path / name)
    (tmp_path / "mine").chmod(0o644)
    with pytest.raises(InputError, match=r"does not sign:(.|\n)*too open"):
        ssh.require_key(tmp_path / "mine", nothing)


# --- Programs --------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that come first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_openssh_that_is_too_old(signed: Path, home: Path, programs: Path) -> None:
    (programs / "ssh").write_text("#!/bin/sh\necho OpenSSH_7.9p1 Debian-10+deb10u4, OpenSSL 1.1.1n >&2\n")
    (programs / "ssh").chmod(0o755)
    for use in (lambda: check(signed, home), lambda: ssh.require_key(home / "mine", nothing)):
        with pytest.raises(HostError, match=r"ssh: 7\.9 is older than 8\.9"):
            use()


@pytest.mark.parametrize("missing", ["ssh", "ssh-keygen"])
def test_openssh_that_is_missing(
    missing: str, programs: Path, signed: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ssh", "ssh-keygen", "setpriv"):
        if name != missing:
            (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(HostError, match=f"{missing}.* not installed"):
        check(signed, home)


def test_ssh_keygen_that_hangs_or_talks(
    programs: Path, signed: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "CHECK_SECONDS", 0.3)
    for text, why in (("sleep 60", "did not end within"), ("yes", "says more than")):
        (programs / "ssh-keygen").write_text(f"#!/bin/sh\nexec {text}\n")
        (programs / "ssh-keygen").chmod(0o755)
        with pytest.raises(HostError, match=why):
            check(signed, home)


# --- Without this project --------------------------------------------------------------------------------


def readme_commands(folder: Path) -> list[str]:
    readme = (folder / "README.md").read_text()
    section = readme.partition("## Check the download\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def bash(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a person does, whose home is the folder."""
    argv, env = [str(shutil.which("bash")), "-c", command], {**os.environ, "HOME": str(folder)}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_commands_of_the_release_s_readme(signed: Path, home: Path) -> None:
    shutil.copy(home / "allow-mine", signed / "allowed_signers")
    whole, whose = readme_commands(signed)
    assert bash(whole, signed).returncode == 0
    done = bash(whose, signed)
    assert (done.returncode, done.stdout.partition(" with ")[0]) == (0, f'Good "file" signature for {NAME}'), done
    shutil.copy(home / "allow-other", signed / "allowed_signers")
    assert bash(whose, signed).returncode != 0
    (signed / SUMS).write_bytes((signed / SUMS).read_bytes() + b"\n")
    shutil.copy(home / "allow-mine", signed / "allowed_signers")
    assert bash(whose, signed).returncode != 0
    (signed / "manifest.json").write_text("{}")
    assert bash(whole, signed).returncode != 0


def docs_commands() -> list[str]:
    page = (PROJECT / "docs" / "verifying-downloads.md").read_text()
    return [block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "invoke" not in block]


def test_commands_of_the_docs(signed: Path, home: Path) -> None:
    check_all, publish, by_hand = docs_commands()
    (signed / ".ssh").mkdir()
    shutil.copy(home / "mine.pub", signed / ".ssh" / "id_ed25519.pub")
    assert bash(publish, signed).returncode == 0
    assert (signed / "allowed_signers").read_text().startswith('releases@example.org namespaces="file" ssh-ed25519 ')
    done = bash(f"set -e; {check_all}", signed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'Good "file" signature for {NAME}')
    if shutil.which("jq"):
        done = bash(by_hand, signed)
        assert done.returncode == 0, done.stderr
        assert bash(by_hand.replace("DSSEv1 28", "DSSEv1 27"), signed).returncode != 0


def test_readme_of_a_release_does_not_say_that_it_is_signed(release: Path) -> None:
    readme = (release / "README.md").read_text()
    assert "If `SHA256SUMS.sig` lies beside" in readme
    assert "Without a signature, nobody vouches for" in " ".join(readme.split())
    assert not set(ALL) & set(listed(release))
