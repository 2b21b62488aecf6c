"""Ways in which a good input is made a hostile one; each yields named inputs."""

from __future__ import annotations

import copy
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tests.hostile.trial import Case

EIGHTHS = range(1, 8)
WRONG: Mapping[str, Any] = {
    "null": None, "true": True, "a negative number": -1, "a huge number": 10**40, "a fraction": 1.5,
    "no number": float("nan"), "text: none": "", "text: NUL": "\0", "text: an upward path": "../../../escaped",
    "text: an absolute path": "/etc/passwd", "text: backwards": "\u202egnp.exe", "text: half a character": "\ud800",
    "text: an escape": "\x1b[2J", "text: long": "x" * 300_000, "an empty list": [], "an empty mapping": {},
    "a list of lists": [[]], "a mapping of nothing": {"": {}}, "a list of paths": ["../escaped"] * 3,
}  # fmt: skip
"""What stands where something else is expected: of other types, out of bounds, or dangerous to print or to follow."""


def cuts(data: bytes) -> Iterator[Case]:
    """Cut short."""
    yield Case(name="empty", data=b"")
    for eighth in EIGHTHS:
        yield Case(name=f"cut at {eighth}/8", data=data[: len(data) * eighth // 8])


def flips(data: bytes, bit: int = 0x10) -> Iterator[Case]:
    """One bit changed, at its ends and between them."""
    for eighth in range(9):
        at = min(len(data) * eighth // 8, len(data) - 1)
        yield Case(name=f"flipped at {eighth}/8", data=data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])


def mixed(data: bytes) -> Iterator[Case]:
    """More than it, or something else of its size."""
    yield Case(name="twice", data=data + data)
    yield Case(name="garbage behind it", data=data + b"\xff\x00garbage" * 100)
    yield Case(name="garbage before it", data=b"\xff\x00garbage\n" + data)
    yield Case(name="zeros", data=bytes(min(len(data), 1 << 20)))
    yield Case(name="ones", data=b"\xff" * min(len(data), 1 << 20))
    yield Case(name="a web page", data=b"<!DOCTYPE html><html><title>404</title></html>")


def numbers(data: bytes, fields: Mapping[str, tuple[int, str]], mend: Callable[[bytearray], object]) -> Iterator[Case]:
    """Sizes and places in a header that are huge, negative or nothing.

    Args:
        fields: Name -> its offset, and its form (struct).
        mend: Makes sums of the header true again.
    """
    for name, (at, form) in fields.items():
        most = (1 << 8 * struct.calcsize(form)) - 1
        for what, value in (("nothing", 0), ("negative", most), ("huge", most >> 1), ("large", most >> 2 & ~0xFFF)):
            changed = bytearray(data)
            struct.pack_into(form, changed, at, value)
            mend(changed)
            yield Case(name=f"{name} is {what}", data=bytes(changed))


def wrong_values(
    data: Any, *, each: int = 1, write: Callable[[Any], str] = json.dumps, encoding: str = "utf-8"
) -> Iterator[Case]:
    """Something wrong at each key, and each key left out, or misspelt.

    Args:
        each: How many wrong values a key gets; they take turns.
    """
    turns = cycle(WRONG.items())
    for path in _paths(data):
        where = ".".join(map(str, path))
        for what, value in islice(turns, each):
            changed = _with(data, path, value)
            yield Case(name=f"{where}: {what}", data=write(changed).encode(encoding, "surrogatepass"))
        if isinstance(path[-1], str):
            yield Case(name=f"{where}: left out", data=write(_with(data, path[:-1], None, drop=path[-1])).encode())


def _paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data[:1]) if isinstance(data, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _with(data: Any, path: Sequence[Any], value: Any, drop: str = "") -> Any:
    if not path and not drop:
        return value
    result = copy.deepcopy(data)
    at = result
    for key in path if drop else path[:-1]:
        at = at[key]
    if drop:
        del at[drop]
    else:
        at[path[-1]] = value
    return result


def yaml_texts(good: str) -> Iterator[Case]:
    """YAML that is none, or means more than it seems."""
    first = good.lstrip().partition("\n")[0]
    levels = "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 10)}]\n" for n in range(1, 12))
    for name, text in {
        "names of names of lists": f"b0: &b0 [x, x]\n{levels}{good}",
        "a list in itself": f"loop: &a [*a]\n{good}",
        "deep lists": f"deep: {'[' * 5000}",
        "deep closed lists": f"deep: {'[' * 3000}{']' * 3000}\n{good}",
        "deep mappings": f"deep: {'{a: ' * 3000}",
        "an object of Python": f"tag: !!python/object/apply:os.system ['touch ../escaped']\n{good}",
        "a number that is none": f"tag: !!int x\n{good}",
        "two documents": f"{good}\n---\nother: 1\n",
        "a tab": f"{good}\n\tx: 1\n",
        "a key twice": f"{good}\n{first.partition(':')[0]}: again\n" if ":" in first else f"{good}\na: 1\na: 2\n",
        "NUL": f"{good}\nx: a\0b\n",
        "a control character": f"{good}\nx: a\x1b[2Jb\n",
        "an open quote": f'{good}\nx: "a\n',
        "half a character as an escape": f'{good}\nx: "\\ud800"\n',
        "an open list": f"{good}\nx: [a\n",
        "a text": "just a text",
        "a list": "- a\n- b\n",
        "a number": "1e400",
        "many keys": good + "".join(f"k{n}: {n}\n" for n in range(30_000)),
        "five MiB": good + "# " + "x" * (5 << 20),
        "a key that is a list": f"{good}\n? [a, b]\n: c\n",
    }.items():
        yield Case(name=name, data=text.encode())
    yield Case(name="no UTF-8", data=good.encode() + b"x: \xff\xfe\n")
    yield Case(name="half a character", data=good.encode() + b"x: \xed\xa0\x80\n")
    yield Case(name="UTF-16", data=good.encode("utf-16"))


def no_files() -> Iterator[Case]:
    """What is no file under the name of one."""
    yield Case(name="a pipe", data=os.mkfifo)
    yield Case(name="a folder", data=Path.mkdir)
    yield Case(name="a link to itself", data=lambda path: path.symlink_to(path.name))
    yield Case(name="a link to a device", data=lambda path: path.symlink_to("/dev/zero"))
    yield Case(name="a socket", data=_listen)


def _listen(path: Path) -> None:
    # Names of sockets are short.
    here = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)
