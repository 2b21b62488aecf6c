"""Doors: links of a shared directory that are served as their targets. The user names each link and its target.

A machine can change every link of a writable directory, and leave one for the next start. So the name of a link proves
nothing: the user says where it leads, and it must lead there.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from vmimage.util.errors import InputError

# A listing is for people; a machine may make any number of links.
SHOWN = 20
EXAMINED = 100_000


def outward_links(root: Path) -> dict[bytes, bytes]:
    """Return the links in a directory that lead out of it: path in the directory -> where it leads, free of links.

    Links to missing targets are left out. Only the first 100,000 names are examined.
    """
    top = os.fsencode(root.resolve())
    found = {}
    for path in links_in(top):
        if os.path.exists(path):  # noqa: PTH110 - names are bytes
            target = os.path.realpath(path)
            if not inside(top, target):
                found[os.path.relpath(path, top)] = target
    return found


def inside(top: bytes, path: bytes) -> bool:
    """Tell whether a path is a directory, or below it; both are free of links."""
    return path == top or path.startswith(top.rstrip(b"/") + b"/")


def named_doors(root: Path, named: Sequence[str]) -> dict[bytes, bytes]:
    """Return the links that the user named, as LINK=TARGET: path in the directory -> where it leads, free of links.

    Args:
        named: LINK is a path in the directory. TARGET is where it leads now. TARGET itself is free of links, since
            the machine could have changed those, too.

    Raises:
        InputError: One of them has another form, is no link, or leads elsewhere.
    """
    top = os.fsencode(root.resolve())
    return dict(_door(top, text) for text in named)


def closed_doors(root: Path, named: Mapping[bytes, bytes]) -> list[str]:
    """Return the option that serves each link that leads out and is not named yet; only for the first few links."""
    links = {link: target for link, target in outward_links(root).items() if named.get(link) != target}
    options = [_option(link, target) for link, target in sorted(links.items())[:SHOWN]]
    return [*options, *([f"and {len(links) - SHOWN} more"] if len(links) > SHOWN else [])]


def _door(top: bytes, text: str) -> tuple[bytes, bytes]:
    shown, equals, wanted = _split(top, text)
    link = os.path.normpath(os.fsencode(shown))
    path = os.path.join(top, link)  # noqa: PTH118 - bytes
    if link.startswith((b"/", b"../")) or link in (b"..", b"."):
        raise InputError(f"--follow-link {text}: no path in the directory", hint="LINK=TARGET, such as lib=/srv/lib")
    if not _is_link_of(top, path):
        raise InputError(f"--follow-link {text}: {shown} is no link in the directory", hint="see `ls -l`")
    target = os.path.realpath(path)
    if not os.path.exists(target):  # noqa: PTH110 - bytes
        raise InputError(f"--follow-link {text}: {shown} leads to nothing: {os.fsdecode(target)}", hint="see `ls -l`")
    if inside(top, target):
        raise InputError(
            f"--follow-link {text}: {shown} stays in the directory, and needs no option", hint="leave it out"
        )
    expected = os.fsencode(os.path.abspath(os.path.expanduser(wanted)))  # noqa: PTH100, PTH111
    if not equals or expected != target:
        told = f", not to {wanted}" if equals else ""
        raise InputError(
            f"--follow-link {text}: {shown} leads to {os.fsdecode(target)}{told}",
            hint=f"if that is meant, say so: {_option(link, target)}",
        )
    return link, target


def _split(top: bytes, text: str) -> tuple[str, str, str]:
    """Split LINK=TARGET after a link that exists, since both names may contain the sign `=`."""
    places = [place for place, character in enumerate(text) if character == "="]
    for place in places:
        if _is_link_of(top, os.path.join(top, os.fsencode(text[:place]))):  # noqa: PTH118 - bytes
            return text[:place], "=", text[place + 1 :]
    return text.partition("=")


def _option(link: bytes, target: bytes) -> str:
    return f"--follow-link {shlex.quote(f'{os.fsdecode(link)}={os.fsdecode(target)}')}"


def _is_link_of(top: bytes, path: bytes) -> bool:
    """Tell whether a link lies in a directory itself, and not behind another link."""
    return os.path.islink(path) and inside(top, os.path.realpath(os.path.dirname(path)))  # noqa: PTH114, PTH120


def links_in(top: bytes, *, whole: bool = False) -> Iterator[bytes]:
    """Yield the links below a directory, of its first 100,000 names.

    A machine may make folders in folders without end, so nothing here calls itself.

    Args:
        whole: Of all names, or none.

    Raises:
        OSError: With `whole`, not all can be examined.
    """
    left, waiting = EXAMINED, [top]
    while waiting and left >= 0:
        try:
            with os.scandir(waiting.pop()) as entries:
                # One more than may be, to see whether it was all.
                for entry in islice(entries, left + 1):
                    left -= 1
                    if entry.is_symlink():
                        yield entry.path
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            if whole:
                raise
    if whole and left < 0:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
