"""What the environment may set, once for all tasks; an argument of a task wins over it."""

from __future__ import annotations

import os
import re
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmimage import PROJECT
from vmimage.util.errors import InputError
from vmimage.util.files import expanded, home

RATE_SECONDS = 60.0
"""Over so long the rate of a download is measured."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a download, and what is unpacked from it, may take.

    Attributes:
        seconds: All attempts at one location together.
        rate: Bytes a second that a server has to send at least, over RATE_SECONDS.
        most_bytes: Of a file, and of an archive that it comes in.
        believed: No digest says what comes: so it comes whole, from its start, and no redirect leads to where others
            could answer instead.
        stop: Set when the download is to end at once.
    """

    seconds: float = 3600.0
    rate: float = 1024.0
    most_bytes: int = 4 << 30
    believed: bool = False
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user chose for one run; from arguments, else from the environment (README: settings).

    Attributes:
        snapshots: URL of the archive that bases with `snapshot:` are made from; Debian's own when empty.
        recheck: Compare the bytes of every cached result that is used.
        start: The stage or provision step from which on all is done again.
        keep_failed: Keep the disk of a machine that failed.
        gate: Release no image with known vulnerabilities that images.yaml does not let pass.
        security_data: A file with Debian's security tracker, or its URL; Debian's own when empty.
        sign: The key of ssh that a release is signed with, see `publish/ssh.py`; unsigned without it.
        allowed_signers: The file that says whose signatures count.
        bundle: The file that pinned files and Debian's packages are taken from, and from nowhere else.
    """

    cache: Path
    dist: Path
    state: Path
    mirrors: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()
    debian_mirror: str | None = None
    snapshots: str = ""
    accelerator: str | None = None
    full_matrix: bool = False
    recheck: bool = False
    start: str = ""
    keep_failed: bool = False
    gate: bool = False
    security_data: str = ""
    sign: Path | None = None
    allowed_signers: Path | None = None
    bundle: Path | None = None
    spec: Path = PROJECT / "images.yaml"

    @property
    def known_hosts(self) -> Path:
        """The file of the host keys of machines."""
        return self.state / "known_hosts"

    @property
    def arguments(self) -> list[str]:
        """These options as arguments of `invoke build-image`; folders and mirrors go by the environment."""
        found = list[str]()
        for name, value in (("accelerator", self.accelerator), ("from", self.start)):
            found += [f"--{name}={value}"] if value else []
        found += ["--matrix=full"] * self.full_matrix + ["--gate"] * self.gate
        return found + ["--keep-failed"] * self.keep_failed + ["--recheck"] * self.recheck

    @property
    def environment(self) -> dict[str, str]:
        """The mirrors, as variables: all users of a host can read the arguments of its processes. And files."""
        mirrors = {"VMIMAGE_MIRROR": shlex.join(self.mirrors), "VMIMAGE_DEB_MIRROR": self.debian_mirror or ""}
        data = {"VMIMAGE_SECURITY_DATA": self.security_data}
        files = {"VMIMAGE_SIGN": str(self.sign or ""), "VMIMAGE_BUNDLE": str(self.bundle or "")}
        return {**mirrors, **data, **files}


ENVIRONMENT = {
    "VMIMAGE_CACHE": "folder of cached results, logs and temporary files",
    "VMIMAGE_DIST": "folder of releases",
    "VMIMAGE_STATE": "folder of the host keys of machines",
    "VMIMAGE_MIRROR": "directories or URLs with pinned files, separated by spaces (quoted as in a shell), tried first",
    "VMIMAGE_UPSTREAM": "OLD=NEW, separated by spaces: what begins with the URL OLD is looked up at NEW",
    "VMIMAGE_DEB_MIRROR": "URL of a Debian mirror, or `deb …` lines separated by semicolons",
    "VMIMAGE_SNAPSHOT": "URL of an archive of snapshots of Debian's packages, for bases with `snapshot:`",
    "VMIMAGE_ACCELERATOR": "kvm or tcg",
    "VMIMAGE_SECURITY_DATA": "file or URL with the data of Debian's security tracker",
    "VMIMAGE_SIGN": "the key of ssh that releases are signed with",
    "VMIMAGE_BUNDLE": "a bundle of inputs: all that a build needs comes from it, and bootstrap's Python packages, too",
    "VMIMAGE_ALLOWED_SIGNERS": "the file that says whose signatures count",
    "VMIMAGE_FETCH_SECONDS": "seconds that one location may take for a pinned file",
    "VMIMAGE_FETCH_RATE": "bytes a second that a location has to send at least",
}


def options(
    environment: Mapping[str, str] = os.environ,
    *,
    mirrors: Sequence[str] = (),
    upstreams: Sequence[str] = (),
    debian_mirror: str | None = None,
    accelerator: str | None = None,
    security_data: str | None = None,
    sign: str | None = None,
    allowed_signers: str | None = None,
    bundle: str | None = None,
) -> Options:
    """Join arguments and environment.

    Raises:
        InputError: A path names a home that is not known, or cannot be used.
    """

    def file(given: str | None, name: str) -> Path | None:
        path = given or environment.get(name)
        return expanded(path, name).absolute() if path else None

    caches = _xdg(environment, "XDG_CACHE_HOME", ".cache")
    data = security_data or environment.get("VMIMAGE_SECURITY_DATA")
    states = _xdg(environment, "XDG_STATE_HOME", ".local/state")
    cache = expanded(environment.get("VMIMAGE_CACHE") or caches / "vmimage", "VMIMAGE_CACHE").absolute()
    if "?" in str(cache):
        raise InputError(
            f"VMIMAGE_CACHE={cache}: e2fsprogs takes what stands behind a question mark for options, not for a path",
            hint="set VMIMAGE_CACHE to a folder without one",
        )
    return Options(
        cache=cache,
        dist=expanded(environment.get("VMIMAGE_DIST") or PROJECT / "dist", "VMIMAGE_DIST").absolute(),
        state=expanded(environment.get("VMIMAGE_STATE") or states / "vmimage", "VMIMAGE_STATE").absolute(),
        mirrors=tuple(
            _absolute(each, "--mirror") for each in (*mirrors, *_words(environment.get("VMIMAGE_MIRROR", "")))
        ),
        upstreams=(*upstreams, *_words(environment.get("VMIMAGE_UPSTREAM", ""))),
        debian_mirror=debian_mirror or environment.get("VMIMAGE_DEB_MIRROR") or None,
        snapshots=environment.get("VMIMAGE_SNAPSHOT") or "",
        accelerator=accelerator or environment.get("VMIMAGE_ACCELERATOR") or None,
        security_data=_absolute(data, "--security-data") if data else "",
        sign=file(sign, "VMIMAGE_SIGN"),
        allowed_signers=file(allowed_signers, "VMIMAGE_ALLOWED_SIGNERS"),
        bundle=file(bundle, "VMIMAGE_BUNDLE"),
    )


def _xdg(environment: Mapping[str, str], name: str, otherwise: str) -> Path:
    """Return a folder of the XDG Base Directory Specification, by which relative ones do not count."""
    given = Path(environment.get(name, ""))
    return given if given.is_absolute() else home() / otherwise


def fetch_bounds(environment: Mapping[str, str] = os.environ) -> Bounds:
    """Return what a download may take.

    Raises:
        InputError: The environment says what is no number.
    """
    default = Bounds()

    def number(name: str, otherwise: float) -> float:
        text = environment.get(name, "")
        if text and not re.fullmatch(r"[0-9]{1,9}", text):
            raise InputError(f"{name}={text}: no number", hint=f"{ENVIRONMENT[name]}: digits only")
        return float(text or otherwise)

    return Bounds(
        seconds=number("VMIMAGE_FETCH_SECONDS", default.seconds), rate=number("VMIMAGE_FETCH_RATE", default.rate)
    )


def _words(text: str) -> list[str]:
    """Split a text as a shell does; one with a single quotation mark somewhere, at spaces only."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _absolute(place: str, option: str) -> str:
    """Return a path or URL that means the same in another directory."""
    return place if "://" in place else str(expanded(place, option).absolute())
