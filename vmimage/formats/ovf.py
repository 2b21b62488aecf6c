"""The descriptor of an appliance, as far as it says where the disk is and how large.

Importers read XML and OVF with different programs, and some with their own. So a descriptor is refused where two of
them could read two things: another encoding than UTF-8, a document type, elements and attributes of the disk that we
do not know, a name or a number in another form than the usual one.

Source: DMTF DSP0243, "Open Virtualization Format"; of units DSP0004, "Programmatic units".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET

NAMESPACE = "http://schemas.dmtf.org/ovf/envelope/1"
OVF = f"{{{NAMESPACE}}}"
_HOST_RESOURCE = "HostResource"
MOST_LEVELS = 64
"""Of elements in elements."""
_PIECE = 4096

_NUMBER = re.compile(r"[0-9]{1,19}")
_UNITS = re.compile(r"byte(?: \* 2\^([0-9]{1,2}))?")
_LARGEST_UNIT = 50
_ENCODING = re.compile(rb"^<\?xml[^>]*?\sencoding\s*=\s*[\"']([^\"']*)[\"']")

FILE_ATTRIBUTES = {"id", "href", "size"}
DISK_ATTRIBUTES = {"diskId", "fileRef", "capacity", "capacityAllocationUnits", "format", "populatedSize"}
"""Attributes that are read or do no harm; of others, such as compression, chunkSize and parentRef, importers differ."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """The disk of a descriptor: the member with it, that member's bytes, and the disk's."""

    href: str
    size: int
    capacity: int


def read_descriptor(data: bytes) -> Described:
    """Read the only file and the only disk of a descriptor.

    Raises:
        ValueError: It has another number of them, or importers could read it in different ways.
    """
    envelope = _parsed(data)
    if envelope.tag != f"{OVF}Envelope":
        raise ValueError("its descriptor is not an OVF 1 envelope")
    file = _only(envelope, "References", "File")
    disk = _only(envelope, "DiskSection", "Disk")
    facts = _attributes(file, FILE_ATTRIBUTES)
    about = _attributes(disk, DISK_ATTRIBUTES)
    if about.get("fileRef", facts.get("id")) != facts.get("id"):
        raise ValueError("the disk of its descriptor is in another file than the one that it names")
    if "#" in about.get("format", "") and not about["format"].endswith("#streamOptimized"):
        raise ValueError(f"the disk of its descriptor has the format {about['format']}")
    _check_use(envelope, about.get("diskId", ""))
    capacity = _number(about, "capacity") * _unit(about.get("capacityAllocationUnits", "byte"))
    return Described(href=_text(facts, "href"), size=_number(facts, "size"), capacity=capacity)


def _parsed(data: bytes) -> ET.Element:
    """Return the root element of a descriptor that every parser reads in the same way."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"its descriptor is not UTF-8: {error}") from error
    encoding = _ENCODING.match(data.removeprefix(b"\xef\xbb\xbf"))
    if b"\0" in data or (encoding and encoding[1].lower() != b"utf-8"):
        raise ValueError("its descriptor is not in UTF-8, or says that it is not")
    # Also within a comment: no descriptor needs one.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("its descriptor has a document type, which descriptors have not")
    try:
        return _elements(data)
    except ET.ParseError as error:
        raise ValueError(f"its descriptor is not XML: {error}") from error


def _elements(data: bytes) -> ET.Element:
    """Parse XML piece by piece, so that no great depth is built up before it is seen."""
    target = _Shallow()
    parser = ET.XMLParser(target=target)  # noqa: S314 - it has no document type, so no entities
    for at in range(0, len(data), _PIECE):
        parser.feed(data[at : at + _PIECE])
        if target.depth > MOST_LEVELS:
            raise ValueError(f"its descriptor has elements more than {MOST_LEVELS} levels deep")
    root: ET.Element = parser.close()
    return root


class _Shallow(ET.TreeBuilder):
    """Counts how deep the deepest element is so far."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = self._now = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ET.Element:
        """Begin an element."""
        self._now += 1
        self.depth = max(self.depth, self._now)
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ET.Element:
        """End one."""
        self._now -= 1
        return super().end(tag)


def _only(envelope: ET.Element, section: str, name: str) -> ET.Element:
    """Return the only element of a name, which stands in a section right below the envelope."""
    known = envelope.findall(f"{OVF}{section}/{OVF}{name}")
    alike = [each for each in envelope.iter() if _local(each.tag).lower() == name.lower()]
    if len(known) != 1 or len(alike) != 1:
        raise ValueError(f"its descriptor has {len(alike)} elements {name} instead of one in {section}")
    return known[0]


def _attributes(element: ET.Element, known: set[str]) -> dict[str, str]:
    """Return the attributes of an element that OVF speaks of, by their names without its namespace."""
    found = dict[str, str]()
    for key, value in element.attrib.items():
        if key.startswith("{") and not key.startswith("{http://schemas.dmtf.org/"):
            continue  # a vendor's own, such as vbox:uuid
        name = _local(key)
        if key != f"{OVF}{name}" or name not in known:
            raise ValueError(f"its descriptor gives the {_local(element.tag)} an attribute {name} that is not expected")
        found[name] = value
    return found


def _check_use(envelope: ET.Element, disk: str) -> None:
    """Check that a machine is given this disk, if it says which."""
    for element in envelope.iter():
        if _local(element.tag) == _HOST_RESOURCE and element.text not in (f"ovf:/disk/{disk}", f"/disk/{disk}"):
            raise ValueError(f"its descriptor gives the machine another disk: {element.text}")


def _text(facts: dict[str, str], name: str) -> str:
    if name not in facts:
        raise ValueError(f"its descriptor lacks the {name} of the disk")
    return facts[name]


def _number(facts: dict[str, str], name: str) -> int:
    text = _text(facts, name)
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"the {name} of the disk in its descriptor is no number: {text}")
    return int(text)


def _unit(text: str) -> int:
    match = _UNITS.fullmatch(text)
    power = int(match[1] or 0) if match else _LARGEST_UNIT + 1
    if power > _LARGEST_UNIT:
        raise ValueError(f"the unit of the disk's capacity is not known: {text}")
    return 1 << power


def _local(tag: object) -> str:
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""
