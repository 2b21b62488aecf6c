"""The family of bundles of inputs, which come from anywhere: all of one is read, and laid out as builds do it."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import inputs as made
from tests.hostile.mutations import cuts, flips, mixed, no_files, wrong_values
from tests.hostile.texts import good
from tests.hostile.trial import WORK, Case, Family
from vmimage.inputs.bundle import INDEX, opened_bundle
from vmimage.inputs.mirror import parse_line

SHOWN = "it is compared and shown, and nothing more"


def _with(told: Any = None, files: dict[str, bytes] | None = None) -> bytes:
    text = told if isinstance(told, bytes) else json.dumps(told or made.index()).encode()
    return made.archived({INDEX: text, **(made.members() if files is None else files)})


def _tarred(form: int, **changes: Any) -> bytes:
    """Return the archive as Python's tarfile writes it, with changes of the header of one member."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=form) as tar:
        for name, data in {INDEX: json.dumps(made.index()).encode(), **made.members()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name == made.digest(made.DEB):
                for key, value in changes.items():
                    setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def _archives() -> Iterator[Case]:
    ustar, pax = tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT
    changed: dict[str, dict[str, Any]] = {
        "a member upwards": {"name": "../escaped"},
        "a member from the root": {"name": "/etc/passwd"},
        "a link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
        "a hard link": {"type": tarfile.LNKTYPE, "linkname": INDEX, "size": 0},
        "a device": {"type": tarfile.CHRTYPE, "size": 0},
        "a folder": {"type": tarfile.DIRTYPE, "size": 0},
    }
    for what, changes in changed.items():
        yield Case(name=f"in it {what}", data=_tarred(ustar, **changes))
    yield Case(name="a pax archive", data=_tarred(pax, pax_headers={"path": "../escaped"}))
    members = made.members()
    yield Case(name="an index twice", data=_twice())
    yield Case(name="an index that is large", data=_with(json.dumps(made.index()).encode() + b" " * (1 << 20)))
    yield Case(name="an index that is deep", data=_with(b"[" * 100_000))
    yield Case(name="no index", data=made.archived(members))
    yield Case(name="no files", data=_with(files={}))
    yield Case(name="many files", data=_with(files={**members, **{f"{n:064x}": b"" for n in range(20_001)}}))


def _twice() -> bytes:
    text = json.dumps(made.index()).encode()
    first = made.archived({INDEX: text})
    # Without what ends it.
    return first[: 512 + -(-len(text) // 512) * 512] + _with()


def _lists() -> Iterator[Case]:
    """Lists that are compressed in other ways, or are others."""
    digest = made.digest(made.LIST)
    for what, data in {
        "no xz": made.LIST,
        "of another form": lzma.compress(made.LIST, lzma.FORMAT_ALONE),
        "of another list": lzma.compress(made.LIST + b"x"),
        "that becomes large": lzma.compress(bytes(64 << 20)),
        "that wants memory": lzma.compress(made.LIST, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 512 << 20}]),
        "cut short": lzma.compress(made.LIST)[:-20],
        "empty": b"",
    }.items():
        name = made.digest(data)
        files = {**made.members(), name: data}
        yield Case(name=f"a list {what}", data=_with({**made.index(), "compressed": {digest: name}}, files))


def bundles() -> Family:
    def read(path: Path, folder: Path) -> object:
        with opened_bundle(path) as bundle:
            parts = [base.part for base in bundle.index.bases] + [bundle.index.packer] * bool(bundle.index.packer)
            laid = []
            for number, part in enumerate(filter(None, parts)):
                laid += part.lay(folder / WORK / str(number), bundle.extract)
            for name, sha256 in bundle.index.python.files.items():
                bundle.extract(sha256, folder / WORK / name)
            for name, sha256 in bundle.index.pins.items():
                bundle.extract(sha256, folder / WORK / name)
        for line in laid:
            options, uri, _, _ = parse_line(line)
            if "trusted" in options or not uri.startswith(f"copy:{folder / WORK}"):
                raise AssertionError(line)
        return laid

    data = _with()
    return Family(
        read=read,
        good=good(data=data),
        cases=(
            *cuts(data),
            *flips(data),
            *mixed(data),
            *no_files(),
            *_archives(),
            *_lists(),
            *(Case(name=case.name, data=_with(case.text)) for case in wrong_values(made.index(), each=3)),
        ),
        taken={
            "packer: left out": "a bundle may have none",
            "*.lists.*: left out": "apt misses it",
            "*.debs.*: left out": "apt misses it",
            "pins.tool: left out": "fetch misses it",
            "python.files.*: left out": "pip misses it",
            "bases.0.mirrors.0: text: *path": SHOWN,
            "*.uri: text: *path": SHOWN,
            "*.component: text: none": "of a mirror without components",
        },
        either={"flipped*": "the last bit may be one of the end"},
        file="inputs.tar",
    )


BUNDLES: dict[str, Callable[[Path], Family]] = {"bundles of inputs": lambda base: bundles()}
