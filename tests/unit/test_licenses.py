"""Licences in copyright files: what is none is left out, and takes no time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.unit.test_sbom import COPYRIGHT, STATUS, SUBJECT, tree
from vmimage.stages.release.sbom.debian_packages import write_package_root
from vmimage.stages.release.sbom.documents import SPDX, write_sboms


def of_good(folder: Path, copyright_: str) -> str:
    """Return which licence the SPDX document declares of a package with such a copyright file."""
    texts = {"/var/lib/dpkg/status": STATUS, "/usr/share/doc/libgood1/copyright": copyright_}
    write_package_root(tree(folder, texts), folder / "root")
    made = json.loads(write_sboms(SUBJECT, folder / "root", [])[SPDX])
    return str(next(each["licenseDeclared"] for each in made["packages"] if each["name"] == "good"))


@pytest.mark.parametrize(
    ("text", "declared"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("MIT WITH MIT", "NOASSERTION"),
        ("()", "NOASSERTION"),
        ("MIT OR ()", "NOASSERTION"),
        ("(" * 3000, "NOASSERTION"),
        ("(MIT OR " * 3000 + "MIT" + ")" * 3000, "NOASSERTION"),
        ("MIT, " * 3000, "MIT"),
        ("x" * 100_000, "NOASSERTION"),
        ("\x1b[2J", "NOASSERTION"),
    ],
    ids=lambda text: text[:20],
)
def test_copyright_that_is_odd_ends_no_release(tmp_path: Path, text: str, declared: str) -> None:
    assert of_good(tmp_path, COPYRIGHT.replace("GPL-2+\n\n", f"{text}\n\n")) == declared


def test_different_licences_of_a_package_are_bounded(tmp_path: Path) -> None:
    """To join them takes a time that grows by the square of their number."""
    names = [f"(MIT OR {a}.0-only) AND {b}" for a in ("GPL-2", "LGPL-2", "AGPL-3") for b in ("ISC", "Zlib", "curl")]
    joined = (f"{' AND '.join(['0BSD'] * n)} OR {name}" for n in range(1, 40) for name in names)
    more = "".join(f"Files: f{n}\nCopyright: x\nLicense: {name}\n\n" for n, name in enumerate(joined))
    started = time.process_time()
    text = COPYRIGHT.replace("License: GPL-2+\n The", f"{more}License: GPL-2+\n The")
    assert of_good(tmp_path, text) == "NOASSERTION"
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "more", ["Files: f\nCopyright: x\nLicense: MIT\n\n" * 5001, f"Comment: {'x' * (5 << 20)}\n"], ids=["many", "long"]
)
def test_copyright_without_end_is_left_out(tmp_path: Path, more: str) -> None:
    started = time.process_time()
    assert of_good(tmp_path, COPYRIGHT + "\n" + more) == "NOASSERTION"
    assert time.process_time() - started < 1
