from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmimage import host
from vmimage.host import (
    debian_mirrors,
    find_uefi,
    require,
    version_tuple,
)
from vmimage.util.errors import HostError, InputError
from vmimage.util.run import Completed


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", (7, 2, 22)),
        ("Packer v1.6.6", (1, 6, 6)),
        ("mke2fs 1.47.0 (5-Feb-2023)\n\tUsing EXT2FS Library version 1.47.0", (1, 47, 0)),
        ("none", ()),
    ],
)
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert version_tuple(text) == version


def test_missing_tools_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(HostError) as refused:
        require(["packer", "mke2fs"])
    assert "packer: not installed, needed since it bakes the image" in refused.value.message
    assert "mke2fs: not installed" in refused.value.message
    assert "./bootstrap" in refused.value.hint
    assert refused.value.exit_code == 3


def test_old_tool_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "tool_version", lambda name: "1.5.9")
    with pytest.raises(HostError, match=r"packer: 1\.5\.9 is older than 1\.6\.6"):
        require(["packer"])


def descriptor(folder: Path, name: str, **changes: object) -> None:
    folder.mkdir(exist_ok=True)
    for file in ("code.fd", "vars.fd"):
        (folder / f"{name}-{file}").write_text("")
    content = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(folder / f"{name}-code.fd"), "format": "raw"},
            "nvram-template": {"filename": str(folder / f"{name}-vars.fd"), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": ["acpi-s3"],
    }
    (folder / f"{name}.json").write_text(json.dumps(content | changes))


def test_firmware_is_the_first_that_suits(tmp_path: Path) -> None:
    descriptor(tmp_path, "10-arm", targets=[{"architecture": "aarch64", "machines": ["virt-*"]}])
    descriptor(tmp_path, "20-secure", features=["secure-boot"])
    descriptor(tmp_path, "30-memory", mapping={"device": "memory", "filename": "x"})
    (tmp_path / "40-broken.json").write_text("{")
    descriptor(
        tmp_path, "50-gone", mapping={"executable": {"filename": "/none"}, "nvram-template": {"filename": "/none"}}
    )
    descriptor(tmp_path, "60-good")
    descriptor(tmp_path, "70-later")
    assert find_uefi([tmp_path]).code == tmp_path / "60-good-code.fd"


def test_no_firmware(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no UEFI firmware"):
        find_uefi([tmp_path])


def test_debian_mirror_override() -> None:
    assert debian_mirrors("trixie", "http://m.invalid/debian") == ["deb http://m.invalid/debian trixie main"]
    assert debian_mirrors("trixie", "deb [trusted=yes] http://a trixie main; http://b") == [
        "deb [trusted=yes] http://a trixie main",
        "deb http://b trixie main",
    ]
    assert debian_mirrors("trixie", "deb [ a=b c=d ]  http://a  trixie  main contrib") == [
        "deb [ a=b c=d ]  http://a trixie  main contrib"
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("m.invalid", "neither a URL nor"),
        ("/srv/debian", "neither a URL nor"),
        ("deb-src http://a trixie main", "neither a URL nor"),
        ("deb http://a", "neither a URL nor"),
        ("http://a/\nhttp://b/", "neither a URL nor"),
        ("deb http://a trixie main\ndeb http://b trixie main", "neither a URL nor"),
        ("deb [a=b\nc] http://a trixie main", "neither a URL nor"),
        ("http://a/\r", "neither a URL nor"),
        ("http://a/\u2028", "neither a URL nor"),
        ("http://a/\x1b[2J", "neither a URL nor"),
        (" ; ", "names no mirror"),
        ("http://a trixie main", "neither a URL nor"),
        ("ftp://a/b", "neither a URL nor"),
        ("file:srv/debian", "no absolute path"),
        ("file://[::1/debian", "Invalid IPv6 URL"),
        ("file://server/debian", "no absolute path"),
        ("copy:/none/debian", "no such directory"),
        ("deb file:///none/debian trixie main", "no such directory"),
    ],
)
def test_debian_mirror_that_cannot_be_used(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as refused:
        debian_mirrors("trixie", text)
    assert refused.value.hint


@pytest.mark.parametrize("form", ["file:{}", "file://{}", "FILE://localhost{}", "copy:{}"])
def test_local_debian_mirror_is_copied_from(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "my mirror"
    folder.mkdir()
    uri = str(folder).replace(" ", "%20")
    assert debian_mirrors("trixie", form.format(uri)) == [f"deb copy:{uri} trixie main"]
    line = f"deb [trusted=yes] {form.format(uri)} trixie main"
    assert debian_mirrors("trixie", line) == [f"deb [trusted=yes] copy:{uri} trixie main"]


@pytest.mark.parametrize(
    ("shown", "lines"),
    [
        ("Debian|Debian|http://m/debian/\nDebian|Debian-Security|http://m/sec/\nX|Y|http://z/",
         ["deb http://m/debian/ trixie main", "deb http://m/debian/ trixie-updates main",
          "deb http://m/sec/ trixie-security main"]),
        ("Debian|Debian|http://m/debian/", []),
        ("Ubuntu|Ubuntu|http://u/", []),
        ("", []),
    ],
)  # fmt: skip
def test_debian_mirrors_of_the_host(monkeypatch: pytest.MonkeyPatch, shown: str, lines: list[str]) -> None:
    monkeypatch.setattr(host, "run", lambda *a, **k: Completed(argv=(), returncode=0, output=shown, seconds=0))
    assert debian_mirrors("trixie", None) == lines
