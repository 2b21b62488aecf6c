"""Families of what programs write for themselves and read again: manifests, host keys, reports of tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from tests.hostile.mutations import cuts, flips, mixed, no_files, wrong_values
from tests.hostile.texts import WORDS, good
from tests.hostile.trial import Case, Family
from tests.tools import released
from tests.unit.test_host_keys import ECDSA, ED25519, OTHER
from tests.unit.test_host_keys import line as told
from tests.unit.test_known_hosts import NAME, line
from vmimage.access.host_keys import Follower
from vmimage.access.known_hosts import known_keys
from vmimage.disk.dpkg import parse_status
from vmimage.stages.release.dist import choose
from vmimage.stages.verify.checks import Check, note_seconds, read_junit
from vmimage.util.errors import VerifyError

OTHERS = "another line, or another text, which is left as it is"
VERSION = "20261127-01234567"


def _released(path: Path, _: Path) -> object:
    return choose(path.parents[2], "box", VERSION)


def manifests(base: Path) -> Family:
    text = (released(base / "dist", "box", VERSION) / "manifest.json").read_text()
    data = text.encode()
    return Family(
        read=_released,
        good=good(data=data),
        cases=(
            *cuts(data),
            *flips(data),
            *mixed(data),
            *no_files(),
            *wrong_values(json.loads(text)),
            Case(name="deep", data=b"[" * 100_000),
            Case(name="a key twice", data=data.replace(b"{", b'{"image": "box", ', 1)),
            Case(name="five MiB", data=data + b" " * (5 << 20)),
        ),
        codes=(6,),
        taken={"machine.ports: left out": "not every image has ports"},
        either={"flipped*": WORDS},
        file=f"dist/box/{VERSION}/manifest.json",
    )


def known_hosts() -> Family:
    """A line that is no key is left alone, and makes no key known."""
    lines = (line(NAME, ED25519) + line("other.invalid", OTHER)).encode()

    def read(path: Path, _: Path) -> object:
        bad: list[str] = []
        keys = known_keys(path, NAME, bad.append)
        if ED25519 not in keys or len(keys) > 1:
            raise VerifyError(f"the key is not known: {keys} {bad}")
        return keys

    return Family(
        read=read,
        good=good(data=lines),
        cases=(*cuts(lines[: len(line(NAME, ED25519))]), *_keys(lines, line(NAME, ED25519).encode()), *no_files()),
        codes=(3, 6),
        taken={"garbage*": OTHERS, "no end of a line": OTHERS, "behind many lines": OTHERS},
    )


def _keys(lines: bytes, one: bytes) -> Iterator[Case]:
    yield from flips(one)
    yield from mixed(one)
    name, kind, text = one.split()
    for what, made in {
        "another kind": [name, b"ssh-rsa", text],
        "a certificate": [b"@cert-authority", name, kind, text],
        "revoked": [b"@revoked", name, kind, text],
        "a pattern": [b"*", kind, text],
        "a negated name": [b"!" + name, kind, text],
        "a key of nothing": [name, kind, b"AAAA"],
        "a length without an end": [name, kind, b"/////w=="],
    }.items():
        yield Case(name=what, data=b" ".join(made) + b"\n")
    yield Case(name="no end of a line", data=one.strip())
    yield Case(name="NUL between", data=one.replace(b" ", b"\0"))
    yield Case(name="behind many lines", data=b"x\n" * 50_000 + one)
    yield Case(name="before many lines", data=one + (b"x" * 99 + b"\n") * 6000)


def consoles() -> Family:
    """Of what a console says, only whole keys are believed."""
    text = told(ED25519) + told(ECDSA)

    def read(path: Path, _: Path) -> object:
        follower = Follower(path)
        follower.read()
        if not follower.keys or not set(follower.keys.values()) <= {ED25519, ECDSA}:
            raise VerifyError(f"it tells {follower.keys}")
        return follower.keys

    one = told(ED25519)
    return Family(
        read=read,
        good=good(data=text),
        cases=(
            *cuts(one[:-3]),
            *flips(one[17:-2]),
            *mixed(one),
            Case(name="behind much", data=b"x" * (4 << 20) + text),
            Case(name="before much", data=text + b"x" * (4 << 20)),
            Case(name="many of no key", data=one.replace(b"AAAAC3", b"BBBBC3") * 5000),
            Case(name="of another kind", data=one.replace(b"ssh-ed25519", b"ssh-rsa")),
            Case(name="NUL in it", data=one.replace(b" AAAA", b" AAA\0A")),
            Case(name="an escape in it", data=one.replace(b" AAAA", b" \x1b[2JAAAA")),
        ),
        codes=(6,),
        taken={"twice": OTHERS, "garbage*": OTHERS, "behind much": "the end is read"},
    )


JUNIT = """<testsuites><testsuite name="pytest"><testcase classname="tests.image.test_x" name="good" time="1"/>
<testcase classname="tests.image.test_y" name="bad" time="2"><skipped message="why"/></testcase></testsuite>
</testsuites>"""


def junit_files() -> Family:
    """A report that is broken, or of no test, is no pass."""

    def read(path: Path, folder: Path) -> object:
        check = Check(name="x")
        read_junit(path, check)
        if not check.passed:
            raise VerifyError("; ".join(check.failures) or "it tells of no test")
        note_seconds(folder / "pace.json", folder)
        return check.tests

    data = JUNIT.encode()
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "lol">{levels}]>'
    outside = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    failed = '<testcase name="{}"><failure>{}</failure></testcase>'
    return Family(
        read=read,
        good=good(data=data),
        cases=(
            *cuts(data),
            *flips(data),
            *mixed(data),
            Case(name="names of names", data=f"{bomb}<a>{failed.format('x', '&e11;')}</a>".encode()),
            Case(name="a file by its name", data=f"{outside}<a>{failed.format('x', '&e;')}</a>".encode()),
            Case(name="deep", data=b"<a>" * 50_000),
            Case(name="deep and closed", data=b"<a>" * 30_000 + b"</a>" * 30_000),
            Case(name="no test", data=b"<testsuites/>"),
            Case(name="a failure of control characters", data=failed.format("x", escape("\x1b[2J")).encode()),
            Case(name="a failure without a word", data=f"<a>{failed.format('x', '')}</a>".encode()),
            Case(name="a failure of many lines", data=failed.format("x", "E x\n" * 50_000).encode()),
            *(Case(name=f"time is {word or 'nothing'}", data=JUNIT.replace('time="1"', f'time="{word}"').encode())
              for word in ("", "x", "nan", "inf", "-1", "1e999", "9" * 5000)),
        ),
        codes=(6,),
        taken={"time is *": "how long a test took is a hint, by which checks are dealt: what is no number is left out"},
        either={"flipped*": WORDS},
        file="machine/junit.xml",
    )  # fmt: skip


def package_states() -> Family:
    """dpkg's status in an image that somebody sent: names and versions that can be printed, or nothing."""
    data = b"".join(
        f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.{at}-1\n\n".encode()
        for at, name in enumerate(("dpkg", "bash", "coreutils"))
    )

    def read(path: Path, _: Path) -> object:
        found = parse_status(path.read_bytes())
        if not found or not "".join([*found, *found.values()]).isprintable():
            raise VerifyError(f"it tells {found}")
        return found

    wrong = {"a control character": b"\x1b[2J", "another script": "\u202egnp".encode(), "an upward path": b"../x"}
    return Family(
        read=read,
        good=good(data=data),
        cases=(
            *cuts(data),
            *flips(data),
            *mixed(data),
            *(Case(name=f"name: {name}", data=data.replace(b"bash", text)) for name, text in wrong.items()),
            *(Case(name=f"version: {name}", data=data.replace(b"1.1-1", text)) for name, text in wrong.items()),
            Case(name="a version of two lines", data=data.replace(b"1.1-1", b"1\n 2")),
            Case(name="a long name", data=data.replace(b"bash", b"x" * 100_000)),
            Case(name="a package twice", data=data.replace(b"bash", b"dpkg")),
        ),
        codes=(6,),
        either={"cut*": "whole entries before the end are good", "flipped*": WORDS, "garbage*": "no field: no entry"},
    )


RECORDS: dict[str, Callable[[Path], Family]] = {
    "manifests": manifests,
    "known_hosts": lambda base: known_hosts(),
    "consoles": lambda base: consoles(),
    "JUnit": lambda base: junit_files(),
    "dpkg": lambda base: package_states(),
}
