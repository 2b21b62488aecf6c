"""images.yaml with other versions and digests: only these change, whatever else stands in the file stays to the byte.

ruamel.yaml says where each value stands. It does not write the file: what it writes itself loses the comments of lists
in brackets, and all alignment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from vmimage.spec.load import MOST_BYTES, load_spec
from vmimage.spec.model import Spec
from vmimage.spec.pins import Arch, Pin
from vmimage.util.errors import InputError
from vmimage.util.files import read_regular, sync, written_beside

Edit = tuple[int, int, str]
"""From and to which character, and what comes there instead."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a pin is to have.

    Attributes:
        sha256: Architecture -> digest of the file.
        archives: Number of a location and architecture -> digest of the archive there.
    """

    version: str
    sha256: Mapping[Arch, str]
    archives: Mapping[tuple[int, Arch], str]


def changed(pin: Pin, change: Change) -> Pin:
    """Return a pin as it is to be."""
    locations = tuple(
        location.model_copy(
            update={
                "sha256": location.sha256
                | {arch: digest for (at, arch), digest in change.archives.items() if at == number}
            }
        )
        for number, location in enumerate(pin.locations)
    )
    digests = {**pin.sha256, **change.sha256}
    return pin.model_copy(update={"version": change.version, "sha256": digests, "locations": locations})


def rewritten(text: str, changes: Mapping[str, Change]) -> str:
    """Return images.yaml with changed pins; pure.

    Raises:
        ValueError: It is written in a way that is not understood here.
    """
    # Without comments, which take half of the time: nothing here reads them.
    pins = _value(YAML(typ="safe", pure=True).compose(text), "pins")
    edits = list[Edit]()
    for name, change in changes.items():
        pin = _value(pins, name)
        edits.append(_replaced(text, _value(pin, "version"), change.version))
        edits += _digests(text, pin, change.sha256, after="version")
        locations = _value(pin, "locations")
        for number in {number for number, _ in change.archives}:
            location = locations.value[number] if isinstance(locations, SequenceNode) else None
            digests = {arch: digest for (at, arch), digest in change.archives.items() if at == number}
            edits += _digests(text, location, digests, after="member")
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _value(node: Node | None, key: str) -> Node:
    found = _found(node, key)
    if found is None:
        raise ValueError(f"there is no {key}")
    return found[1]


def _found(node: Node | None, key: str) -> tuple[Node, Node] | None:
    pairs = node.value if isinstance(node, MappingNode) else []
    return next(((each, value) for each, value in pairs if each.value == key), None)


def _replaced(text: str, node: Node, new: str) -> Edit:
    """Replace a value, in the quotation marks that it has."""
    start, end = node.start_mark.index, node.end_mark.index
    quote = text[start] if text[start] in "'\"" else ""
    if not isinstance(node, ScalarNode) or text[start:end] != f"{quote}{node.value}{quote}":
        raise ValueError(f"line {node.start_mark.line + 1}: write this value on one line, without escapes")
    if not quote and not new[:1].isalpha() and not new.isalnum():
        quote = '"'  # 1.10 would be a number
    return start, end, f"{quote}{new}{quote}"


def _digests(text: str, node: Node | None, digests: Mapping[Arch, str], *, after: str) -> list[Edit]:
    """Set digests in `sha256` of a pin or a location, which stands behind the value of `after` if it is new."""
    known = _found(node, "sha256")
    if known is None:
        inner = ", ".join(f"{arch}: {digest}" for arch, digest in digests.items())
        return [_added(text, node, after, f"sha256: {{{inner}}}")] if digests else []
    edits = list[Edit]()
    for arch, digest in digests.items():
        old = _found(known[1], arch)
        if old:
            edits.append(_replaced(text, old[1], digest))
        else:
            last = known[1].value[-1][0].value
            edits.append(_added(text, known[1], last, f"{arch}: {digest}"))
    return edits


def _added(text: str, node: Node | None, after: str, entry: str) -> Edit:
    """Add an entry to a mapping, behind another: on a line of its own, if the others have their own."""
    found = _found(node, after)
    if found is None or not isinstance(node, MappingNode):
        raise ValueError(f"there is no {after}, behind which {entry.partition(':')[0]} could stand")
    key, value = found
    end = value.end_mark.index
    if node.flow_style:
        return end, end, f", {entry}"
    if isinstance(value, ScalarNode) or getattr(value, "flow_style", False):
        line = text.find("\n", end)
        at, before = (line, "\n") if line >= 0 else (len(text), "\n")
        before = "\r\n" if text[at - 1 : at] == "\r" else before
        at -= before == "\r\n"
    else:
        # The end of a list in lines is where the next key stands; its own last line is where it ends for people.
        at, before = len(text[:end].rstrip()), "\r\n" if "\r\n" in text else "\n"
    return at, at, f"{before}{' ' * key.start_mark.column}{entry}"


def write(path: Path, old: bytes, new: str, spec: Spec, changes: Mapping[str, Change]) -> None:
    """Replace images.yaml, whole and at once, by one that loads and says exactly what was decided.

    Args:
        old: What was read of it; nobody may have changed it since.
        spec: What that says.

    Raises:
        InputError: The new one would not be right, or somebody changed the file; it stays as it is.
    """
    project, path = path.parent, Path(os.path.realpath(path))
    with written_beside(path, mode=path.stat().st_mode & 0o777) as beside:
        beside.write_bytes(new.encode())
        wanted = spec.model_copy(
            update={"pins": {n: changed(p, changes[n]) if n in changes else p for n, p in spec.pins.items()}}
        )
        # Not only good, but what was decided and nothing else.
        if load_spec(beside, project) != wanted:
            raise InputError(
                f"{path} could not be rewritten: the new one would say something else", hint="update the pins by hand"
            )
        if read_regular(path, MOST_BYTES, follow=True) != old:
            raise InputError(f"{path} was changed meanwhile, and left as it is", hint="run `invoke update` again")
    sync(path.parent)


def left_behind(spec: Spec, names: Iterable[str], say: Callable[[str], None]) -> None:
    """Tell of locations whose file does not change with the version: they go on serving the old one."""
    for name in names:
        for number, location in enumerate(spec.pins[name].locations):
            texts = (location.url, location.path, *location.member) if not location.pypi else ()
            if not any("{version}" in text for text in texts if text):
                what = location.pypi or location.url or location.path
                say(
                    f"pins.{name}.locations[{number}]: {what} does not name {{version}}, so it still has the old file; "
                    "change it, or take it out"
                )
