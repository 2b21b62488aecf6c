"""A part of Debian mirrors: the packages that something was made from, and the lists by which apt verifies them.

The lists are what the mirrors signed, to the byte. So apt takes packages from such a part as from any mirror: it checks
Debian's signature of the lists, and the digest of every package in them. Nothing here is believed.
`bootstrap` reads parts, too: this imports nothing but what comes with Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

from vmimage.util.files import place
from vmimage.util.masking import masked

TARGETS = "$(CREATED_BY)|$(METAKEY)|$(REPO_URI)|$(URI)|$(RELEASE)|$(COMPONENT)|$(FILENAME)"
"""What `apt-get indextargets --format` is asked for."""
SIGNED = ("InRelease", "Release", "Release.gpg")
"""What a suite may sign its lists with; lists without signatures have a Release alone."""
OWN_OPTIONS = "check-valid-until=no by-hash=no target=Packages"
"""Of lines for sources.list: what was signed then has expired since, lists lie under their names only, and there are no
others, which apt may be set to ask for (icons, contents)."""
MOST_TEXT = 4000

SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"[A-Za-z0-9._+~:%=@^-]{1,255}")
_SUITE = re.compile(r"[A-Za-z0-9._/+~-]{1,200}")
_COMPONENT = re.compile(r"[A-Za-z0-9._/+~-]{0,200}")
_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>(?:\s+\S+)*)\s*")

Put = Callable[[str, Path], None]
"""Writes what has a SHA-256 to a path."""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A component of a suite of a mirror.

    Attributes:
        uri: Of the mirror, without credentials.
        lists: Path below the mirror -> SHA-256 of the list of packages, and of what signs it.
    """

    uri: str
    suite: str
    component: str
    lists: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class MirrorPart:
    """Some packages of some mirrors.

    Attributes:
        debs: Path below a mirror -> SHA-256.
    """

    repositories: tuple[Repository, ...]
    debs: Mapping[str, str]

    @property
    def data(self) -> dict[str, Any]:
        """It as JSON-like data, of which `read_part` makes it again."""
        return asdict(self)

    @property
    def digests(self) -> set[str]:
        """The SHA-256 of all its files."""
        return {*self.debs.values(), *(digest for each in self.repositories for digest in each.lists.values())}

    def lay(self, folder: Path, put: Put, lines: Sequence[str] = ()) -> list[str]:
        """Lay it out in a folder as mirrors; returns the lines for sources.list that take packages from there.

        Args:
            lines: Those of the user. Only they can say that another key counts than Debian's, or none.
        """
        roots: dict[str, Path] = {}
        for each in self.repositories:
            root = roots.setdefault(each.uri, folder / str(len(roots)))
            for path, sha256 in each.lists.items():
                if not (root / path).exists():
                    put(sha256, _with_folder(root / path))
        for path, sha256 in self.debs.items():
            first, *others = (root / path for root in roots.values())
            put(sha256, _with_folder(first))
            for other in others:
                place(first, _with_folder(other))
        return [_line(each, roots[each.uri], lines) for each in self.repositories]


class PackageSource(Protocol):
    """Where a base takes its packages from, instead of mirrors."""

    @property
    def part(self) -> MirrorPart:
        """What is there, as the mirrors had it."""

    def lay(self, folder: Path) -> list[str]:
        """Lay out mirrors in a folder; returns the lines for sources.list that use them.

        Raises:
            VmimageError: Something is missing or damaged.
        """


def _with_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _line(repository: Repository, root: Path, lines: Sequence[str]) -> str:
    options = " ".join(filter(None, (options_of(repository, lines), OWN_OPTIONS)))
    # With `file`, apt would have dpkg open the packages where they are, which inside the new root they are not.
    return f"deb [{options}] copy:{quote(str(root))} {repository.suite} {repository.component}".rstrip()


def parse_line(line: str) -> tuple[str, str, str, tuple[str, ...]]:
    """Return the options, URI, suite and components of a line of sources.list; of what is none, empty ones."""
    found = _LINE.fullmatch(line)
    if not found:
        return "", "", "", ()
    return (found["options"] or "").strip(), found["uri"], found["suite"], tuple(found["components"].split())


def options_of(repository: Repository, lines: Sequence[str]) -> str:
    """Return the options of the user's line for a repository; none where they have no such line."""
    for options, uri, suite, components in map(parse_line, lines):
        same = (same_uri(uri), suite) == (same_uri(repository.uri), repository.suite)
        if same and (repository.component in components or not (components or repository.component)):
            return options
    return ""


def same_uri(uri: str) -> str:
    """Return a URI as it is compared: without credentials, escapes, and a slash at its end; apt tells it unescaped."""
    return unquote(masked(uri)).rstrip("/")


def kept_lists(targets: str, lists: Path) -> Iterator[tuple[str, str, str, dict[str, Path]]]:
    """Yield the repositories that apt has lists of: URI, suite, component, and path below the URI -> file.

    Args:
        targets: What `apt-get indextargets` said of TARGETS.
        lists: The folder that holds the lists now.
    """
    for row in targets.splitlines():
        created_by, key, mirror, uri, suite, component, name = row.split("|")
        file = lists / Path(name).name
        if created_by != "Packages" or not file.is_file():
            continue
        # A list is called like its URI; so is what signs it, beside it.
        start = file.name.removesuffix(key.replace("/", "_"))
        path = uri.removeprefix(mirror).removeprefix("./")
        signed = {path.removesuffix(key) + end: lists / (start + end) for end in SIGNED}
        found = {path: file, **{at: each for at, each in signed.items() if each.is_file()}}
        yield masked(mirror), suite, component, found


def read_part(data: object) -> MirrorPart:
    """Return a part of mirrors that somebody wrote down.

    Raises:
        ValueError: It is none: paths lead elsewhere, a line of sources.list would be two, a digest is none.
    """
    found = mapping(data)
    repositories = found.get("repositories")
    if not isinstance(repositories, list) or not repositories:
        raise ValueError("repositories: none")
    return MirrorPart(repositories=tuple(map(_repository, repositories)), debs=_files(found.get("debs")))


def _repository(data: object) -> Repository:
    found = mapping(data)
    return Repository(
        uri=text(found.get("uri")),
        suite=text(found.get("suite"), _SUITE),
        component=text(found.get("component"), _COMPONENT),
        lists=_files(found.get("lists")),
    )


def _files(data: object) -> dict[str, str]:
    found = {path: text(sha256, SHA256) for path, sha256 in mapping(data).items()}
    for path in found:
        parts = path.split("/")
        if len(path) > MOST_TEXT or any(not _PATH.fullmatch(part) or not part.strip(".") for part in parts):
            raise ValueError(f"{path!r:.80} is no path below a mirror")
    # A file cannot be the folder of another one.
    folders = {str(parent) for path in found for parent in Path(path).parents}
    if both := sorted(folders & found.keys()):
        raise ValueError(f"{both[0]!r:.80} is a file and a folder")
    return found


def mapping(data: object) -> dict[str, object]:
    """Return data that are a mapping, as JSON has it.

    Raises:
        ValueError: They are none.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{data!r:.40} is no mapping")
    return data


def text(data: object, form: re.Pattern[str] | None = None) -> str:
    """Return data that are a text of a form, on one line and of a usual length.

    Raises:
        ValueError: They are none.
    """
    if (
        not isinstance(data, str)
        or len(data) > MOST_TEXT
        or not data.isprintable()
        or (form and not form.fullmatch(data))
    ):
        raise ValueError(f"{data!r:.80} cannot stand there")
    return data
