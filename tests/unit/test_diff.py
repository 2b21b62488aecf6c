"""What `invoke diff` takes from images, and how it compares and prints it."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools import released
from vmimage.commands.diff.compare import FileChange, file_changes
from vmimage.commands.diff.subject import find_subject
from vmimage.commands.diff.tables import Section, as_markdown, as_text, file_row, version_section
from vmimage.disk.dpkg import MOST_CHANGELOG_BYTES, UNKNOWN, highest_urgency, parse_status, urgency
from vmimage.disk.ext4 import Node, Run, Tree
from vmimage.stages.release.changes import version_changes
from vmimage.util.console import Console
from vmimage.util.errors import InputError, VerifyError
from vmimage.util.markdown import code

VERSION = "20261127-01234567"
ENTRY = """tool ({}) unstable; urgency={}

  * A change.

 -- A Developer <a@example.org>  Mon, 23 Nov 2026 10:00:00 +0000

"""
CHANGELOG = "".join(
    ENTRY.format(version, how) for version, how in [("3-1", "low"), ("2-2", "HIGH (security)"), ("2-1", "medium")]
).encode()


def entry(package: str, version: str, *, architecture: str = "amd64", status: str = "install ok installed") -> str:
    return (
        f"Package: {package}\nStatus: {status}\nArchitecture: {architecture}\nVersion: {version}\n"
        "Description: text\n of two lines\n\n"
    )


def test_installed_packages_are_read() -> None:
    text = entry("dpkg", "1.22") + entry("tool", "1:2~rc1-3+b1", architecture="all")
    text += entry("libc6", "2.41") + entry("libc6", "2.41", architecture="i386")
    text += entry("gone", "1", status="deinstall ok config-files") + entry("half", "2", status="install ok unpacked")
    assert parse_status(text.encode()) == {
        "dpkg": "1.22",
        "tool": "1:2~rc1-3+b1",
        "libc6": "2.41",
        "libc6:i386": "2.41",
        "half": "2",
    }
    assert parse_status(b"") == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfe\x00", "names no installed package"),
        (b"a web page", "names no installed package"),
        (b"Package: ../x\nVersion: 1\n", "entry 1 has no name"),
        (entry("tool", "1 2").encode(), "tool has no version"),
        (entry("tool", "\x1b[2J").encode(), "tool has no version"),
        (entry("tool", "1", architecture="x y").encode(), "tool has no version"),
        (b"Package: tool\nStatus: install ok installed\n", "tool has no version"),
        ((entry("tool", "1") * 2).encode(), "twice"),
    ],
)
def test_status_that_is_none(data: bytes, said: str) -> None:
    with pytest.raises(VerifyError, match=said):
        parse_status(data)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("2-1", "3-1", "high"),
        ("2-2", "3-1", "low"),
        ("1-1", "2-1", "medium"),
        ("2-1", "2-2+b1", "high"),
        ("3-1", "2-1", UNKNOWN),
        ("3-1", "4-1", UNKNOWN),
        ("no version", "3-1", UNKNOWN),
    ],
)
def test_urgency_is_the_highest_between_two_versions(old: str, new: str, said: str) -> None:
    assert highest_urgency(CHANGELOG, old, new) == said


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"garbage\n" * 100, ENTRY.format("3-1", "odd").encode()])
def test_changelog_that_does_not_tell(data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert highest_urgency(data, "1", "3-1") == UNKNOWN
    assert capsys.readouterr() == ("", "")


def node(path: str, kind: int = stat.S_IFREG, mode: int = 0o644, **more: object) -> Node:
    fields: dict[str, object] = {"uid": 0, "gid": 0, "size": 1, "target": "", "runs": (), **more}
    return Node(path=path, inode=1, mode=kind | mode, mtime=0, **fields)  # type: ignore[arg-type]


def tree(folder: Path, **files: bytes) -> Tree:
    nodes, at = {}, 0
    with (folder / "disk").open("wb") as disk:
        for name, data in files.items():
            path = f"/usr/share/doc/tool/{name.replace('__', '.')}"
            run = Run(at=0, disk=at, length=max(1, len(data)))
            nodes[path] = node(path, size=len(data), runs=(run,))
            at += disk.write(data)
    return Tree(folder / "disk", nodes)


def test_urgency_comes_from_the_changelog_in_the_image(tmp_path: Path) -> None:
    found = tree(tmp_path, changelog__Debian__gz=gzip.compress(CHANGELOG))
    assert urgency(found, "tool", "2-1", "3-1") == "high"
    assert urgency(found, "tool:i386", "2-1", "3-1") == "high"
    assert urgency(found, "another", "2-1", "3-1") == UNKNOWN


def test_changelog_of_a_package_that_is_debians_own(tmp_path: Path) -> None:
    found = tree(tmp_path, changelog__gz=gzip.compress(ENTRY.format("2", "low").encode()))
    assert urgency(found, "tool", "1", "2") == "low"
    assert urgency(found, "tool", "1-1", "2-1") == UNKNOWN, "of another's package, it is upstream's"


@pytest.mark.parametrize(
    "data", [b"no gzip", gzip.compress(CHANGELOG)[:20], gzip.compress(bytes(8 * MOST_CHANGELOG_BYTES))],
    ids=["no gzip", "cut", "bomb"],
)  # fmt: skip
def test_changelog_that_is_no_gzip_cut_or_a_bomb(data: bytes, tmp_path: Path) -> None:
    assert urgency(tree(tmp_path, changelog__Debian__gz=data), "tool", "2-1", "3-1") == UNKNOWN


def test_versions_that_changed() -> None:
    before = {"same": "1", "up": "1.9", "down": "2", "gone": "1"}
    after = {"same": "1", "up": "1.10", "down": "1", "new": "1"}
    changes = version_changes(before, after, lambda *_: "low")
    assert [(each.name, each.change, each.urgency) for each in changes] == [
        ("down", "downgraded", "low"),
        ("gone", "removed", ""),
        ("new", "added", ""),
        ("up", "upgraded", "low"),
    ]
    assert [each.change for each in version_changes({"pin": "v1"}, {"pin": "v2"})] == ["changed"]


def changes(before: list[Node], after: list[Node]) -> list[FileChange]:
    digests = (lambda one: "0" * 64, lambda one: ("1" if one.path == "/bytes" else "0") * 64)
    return [change for change, *_ in file_changes(iter(before), iter(after), digests)]


def test_files_that_changed() -> None:
    before = [node("/bytes"), node("/gone"), node("/link", stat.S_IFLNK, target="a"), node("/mode"), node("/same")]
    after = [
        node("/bytes"),
        node("/link", stat.S_IFLNK, target="b"),
        node("/mode", mode=0o4755, uid=7),
        node("/new", stat.S_IFDIR),
        node("/same"),
    ]
    found = changes(before, after)
    assert [(each.path, each.change) for each in found] == [
        ("/bytes", "changed"),
        ("/gone", "removed"),
        ("/link", "changed"),
        ("/mode", "changed"),
        ("/new", "added"),
    ]
    assert [each.differing for each in found if each.change == "changed"] == [
        ("sha256",),
        ("target",),
        ("mode", "owner"),
    ]
    assert file_row(found[3]) == ("changed", "/mode", "mode 0644, owner 0:0", "mode 4755, owner 7:0")


@pytest.mark.parametrize(("before", "after"), [([], []), ([node("/a")], []), ([], [node("/a"), node("/b")])])
def test_sides_of_other_lengths(before: list[Node], after: list[Node]) -> None:
    assert len(changes(before, after)) == abs(len(before) - len(after))


def test_a_million_files_are_not_held() -> None:
    """Both sides are read in step: neither is ever further than one file ahead of what was taken."""
    asked = [0, 0]

    def side(number: int) -> Iterator[Node]:
        for count in range(1_000_000):
            asked[number] += 1
            yield node(f"/{count:07}", mode=0o644 + number)

    digest = lambda one: ""  # noqa: E731
    found = file_changes(side(0), side(1), (digest, digest))
    for _ in range(10):
        next(found)
    assert max(asked) <= 11


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/etc/x", "`/etc/x`"),
        ("@someone <b> https://example.org", "`@someone <b> https://example.org`"),
        ("a`b", "``a`b``"),
        ("`", "`` ` ``"),
        (" a", "`  a `"),
        ("a|b\\|c", "`a\\x7cb\\\\x7cc`"),
        ("\x1b[2J\u202egnp", "`\\x1b[2J\\u202egnp`"),
        ("a\nb\tc", "`a\\x0ab\\x09c`"),
        ("", ""),
        ("-", "-"),
    ],
)
def test_what_an_image_says_is_no_markup(text: str, shown: str) -> None:
    assert code(text) == shown


def test_tables() -> None:
    section = version_section(
        "Packages", version_changes({"a": "1", "b": "1"}, {"a": "2"}, lambda *_: "low"), 1, urgency=True
    )
    assert list(as_text([section])) == [
        "\nPackages: 1 upgraded, 1 removed",
        "            name  A  B  urgency",
        "  upgraded  a     1  2  low",
        "  and 1 more: --limit 0 shows all",
    ]
    assert list(as_markdown([section])) == [
        "### Packages: 1 upgraded, 1 removed",
        "",
        "|  | name | A | B | urgency |",
        "|---|---|---|---|---|",
        "| `upgraded` | `a` | `1` | `2` | `low` |",
        "",
        "and 1 more: `--limit 0` shows all",
        "",
    ]
    assert list(as_text([Section(title="Pins", columns=("name",), rows=())])) == ["\nPins", "  no difference"]


def test_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = released(tmp_path / "dist", "toolbox", VERSION)
    file = next(folder.glob("*.qcow2"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toolbox").mkdir()
    for text in (str(file), str(folder), "toolbox", f"toolbox/{VERSION}", "toolbox/latest"):
        found = find_subject(text, tmp_path / "dist", Console())
        assert found.file.path == file
        assert found.file.recorded_sha256
        assert found.sizes == {"qcow2": len(b"an image")}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("none.qcow2", InputError, "no file, release or image none.qcow2"),
        ("other", InputError, "holds no release latest of other"),
        ("toolbox/20260101-01234567", InputError, "holds no release 20260101-01234567"),
        ("toolbox/", InputError, "is a folder without manifest.json"),
        ("toolbox/newest", InputError, "no file, release or image"),
        ("text.txt", InputError, "has no known format"),
        ("wrong", VerifyError, r"wrong cannot be used: manifest\.json"),
        ("a\0b", InputError, "no path"),
        ("x" * 256, InputError, "xx…: no path"),
        ("a/" * 2100, InputError, "a/…: no path"),
        ("", InputError, "no release"),
        (".", InputError, "no release"),
    ],
)
def test_subjects_that_are_none(
    text: str, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released(tmp_path / "dist", "toolbox", VERSION)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toolbox").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "manifest.json").write_text("[]")
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(error, match=said):
        find_subject(text, tmp_path / "dist", Console())
