"""`invoke sign`, `invoke verify --signature` and `--sign` of a build, as users meet them."""

from __future__ import annotations

from pathlib import Path

import pytest
from invoke.exceptions import Exit

from tests.sandbox import Sandbox
from tests.signing import NAME, check, export, home, listed, make_key, release, signed, signed_once
from vmimage import PROJECT, pipeline
from vmimage.commands.build import build
from vmimage.commands.sign import release_folder, sign_and_tell, sign_built
from vmimage.commands.verify_signature import verify_signature
from vmimage.publish import ssh
from vmimage.publish.signatures import ALL, SIGNATURE
from vmimage.stages.release.dist import Release, choose
from vmimage.util.console import Console
from vmimage.util.errors import InputError
from vmimage.util.settings import Options

__all__ = ["export", "home", "release", "signed", "signed_once"]


def chosen(folder: Path, **more: Path) -> Options:
    return Options(cache=folder / "cache", dist=folder / "dist", state=folder / "state", **more)  # type: ignore[arg-type]


def said(error: pytest.ExceptionInfo[Exit]) -> str:
    return str(error.value.message)


def test_from_the_command_line(release: Path, home: Path, tmp_path: Path) -> None:
    allowed = {"VMIMAGE_ALLOWED_SIGNERS": str(home / "allow-mine")}
    here = Sandbox(PROJECT, tmp_path / "cache", tmp_path / "dist", allowed)
    done = here.invoke("sign", "toolbox", str(home / "mine"), "--json")
    assert done.event("result")["files"] == list(ALL)
    (release / "README.md").write_text("\x1b[2J")
    done = here.invoke("verify", "toolbox", "--signature")
    assert done.returncode == 6
    assert "README.md is not the file that SHA256SUMS speaks of" in done.stderr
    assert "Traceback" not in done.stderr


def test_release_is_named_by_folder_file_image_or_version(release: Path, tmp_path: Path) -> None:
    file = next(release.glob("*.qcow2"))
    for text in (str(release), str(file), f"{release}/", str(release.parent / "latest"), "toolbox",
                 "toolbox/latest", f"toolbox/{release.name}"):  # fmt: skip
        assert release_folder(text, tmp_path / "dist") == release
    with pytest.raises(InputError, match="holds no release"):
        release_folder("toolbox/20200101-00000000", tmp_path / "dist")


def test_good_release_is_told_with_its_signer(
    signed: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = chosen(tmp_path, allowed_signers=home / "allow-mine")
    verify_signature(str(signed), options, revoked=None, signer=NAME, json=False)
    told = capsys.readouterr().out
    assert f"toolbox {signed.name}\n  {SIGNATURE}: signed by {NAME} (SHA256:" in told
    assert "booted and checked: qcow2-virtio-bios" in told


def test_what_nobody_signed_and_lies_beside_is_warned_of(
    signed: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (signed / "install\x1b[2J.sh").write_text("")
    options = chosen(tmp_path, allowed_signers=home / "allow-mine")
    verify_signature(str(signed), options, revoked=None, signer=None, json=False)
    told = capsys.readouterr()
    assert r"beside the release lies what nobody signed: install\x1b[2J.sh" in " ".join(told.err.split())
    assert "\x1b[2J" not in told.out + told.err


def test_signed_with_another_key_stays_so(signed: Path, home: Path, tmp_path: Path) -> None:
    before = listed(signed)
    sign_and_tell(str(signed), chosen(tmp_path, sign=home / "mine"), json=False)
    with pytest.raises(Exit) as refused:
        sign_and_tell(str(signed), chosen(tmp_path, sign=home / "other"), json=False)
    assert refused.value.code == 2
    assert "is signed already, with the key SHA256:" in said(refused)
    assert listed(signed) == before


@pytest.fixture
def built(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A build that ends at once, with a release; notes that it began."""
    began = list[str]()

    def build_image(*_: object) -> Release:
        began.append("a build")
        return choose(tmp_path / "dist", "toolbox", None)

    monkeypatch.setattr(pipeline, "build_image", build_image)
    return began


def test_build_with_a_key_gives_a_signed_release(built: list[str], release: Path, home: Path, tmp_path: Path) -> None:
    build("toolbox", chosen(tmp_path), matrix="default", json=False)
    assert not set(ALL) & set(listed(release))
    build("toolbox", chosen(tmp_path, sign=home / "mine"), matrix="default", json=False)
    check(release, home)
    first = listed(release)
    build("toolbox", chosen(tmp_path, sign=home / "mine"), matrix="default", json=False)
    assert listed(release) == first
    assert len(built) == 3


def test_key_that_cannot_sign_is_told_before_a_build(built: list[str], tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", "secret")
    with pytest.raises(Exit) as refused:
        build("toolbox", chosen(tmp_path, sign=key), matrix="default", json=False)
    assert "has a passphrase, and nothing asks for it here" in said(refused)
    assert not built


def test_release_that_could_not_be_signed_is_there_and_said_to_be_unsigned(
    built: list[str], release: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> bytes:
        raise InputError("the security key was not touched", hint="touch it")

    monkeypatch.setattr(ssh, "sign", gone)
    monkeypatch.setattr(ssh, "require_key", lambda *_: "")
    with pytest.raises(Exit) as refused:
        build("toolbox", chosen(tmp_path, sign=home / "mine"), matrix="default", json=False)
    assert f"{release} is released, and not signed: the security key was not touched" in said(refused)
    assert f"invoke sign {release}" in said(refused)


def test_build_of_what_was_signed_with_another_key(
    signed: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listed(signed)
    sign_built(signed, home / "other", Console())
    assert "is of another key" in " ".join(capsys.readouterr().err.split())
    assert listed(signed) == before
