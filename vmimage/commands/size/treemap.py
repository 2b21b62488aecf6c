"""A picture of what an image consists of: an SVG in which area is bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import squarify

from vmimage import PROJECT
from vmimage.commands.size.measure import GROUPS, ImageSize, Part, mib
from vmimage.util.render import render

TEMPLATE = Path("templates/size.svg.j2")
WIDTH, HEIGHT, TITLE = 1280, 800, 64
"""Of the picture in pixels; TITLE is the height above the map."""
HEADER = 24
GAP = 2
LEAST_SHARE = 0.001
"""Smaller parts of a group become one."""
CHARACTER = 0.62
"""Width of a character of the font, in font sizes; rather too much, so that no label runs out of its box."""
FONTS = (18, 14, 12, 10)
LEAST_LABEL = 5
"""Letters that a label is at least cut to."""

# Okabe and Ito's colours, which the colour-blind can tell apart, lightened to carry black text.
COLOURS = dict(zip(GROUPS, ("#f5c56b", "#8ecae6", "#7fd1b3", "#b5d88a", "#f3a683", "#d9b3d3", "#e63946"), strict=True))


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of the picture, in pixels.

    Attributes:
        label: What is written in it; `note` under that, `full` where the mouse rests.
        font: Size of the letters, 0 if nothing fits.
    """

    x: float
    y: float
    width: float
    height: float
    label: str = ""
    note: str = ""
    full: str = ""
    font: int = 0
    colour: str = ""


def picture(size: ImageSize, title: str, subtitle: str) -> str:
    """Return the SVG."""
    values = {"title": title, "subtitle": subtitle, "width": WIDTH, "height": HEIGHT, "boxes": boxes(size)}
    return render(PROJECT / TEMPLATE, values)


def boxes(size: ImageSize) -> list[tuple[Box, list[Box]]]:
    """Return each group's box and those of its parts; pure."""
    groups = [group for group in map(size.total, GROUPS) if group.qcow2_bytes]
    groups.sort(key=lambda group: -group.qcow2_bytes)
    found = []
    area = Box(x=GAP, y=TITLE, width=WIDTH - 2 * GAP, height=HEIGHT - TITLE - GAP)
    for group, box in zip(groups, _layout([group.qcow2_bytes for group in groups], area), strict=True):
        parts = merged(size.parts, group.group, size.total().qcow2_bytes * LEAST_SHARE)
        header = min(HEADER, box.height / 3)
        inner = replace(box, y=box.y + header, height=box.height - header)
        placed = _layout([part.qcow2_bytes for part in parts], inner)
        colour = COLOURS[group.group]
        titled = _labelled(replace(box, height=header, colour=colour), group.group, group.qcow2_bytes)
        whole = replace(titled, height=box.height)
        labelled = [
            _labelled(replace(b, colour=colour), p.name, p.qcow2_bytes) for p, b in zip(parts, placed, strict=True)
        ]
        found.append((whole, labelled))
    return found


def merged(parts: Sequence[Part], group: str, least: float) -> list[Part]:
    """Return the parts of a group, the largest first; those under `least` bytes as one at its place; pure."""
    of_group = [part for part in parts if part.group == group and part.qcow2_bytes]
    large = [part for part in of_group if part.qcow2_bytes >= least]
    small = [part for part in of_group if part.qcow2_bytes < least]
    if small:
        name = f"{len(small)} smaller" if len(small) > 1 else small[0].name
        total = sum(part.qcow2_bytes for part in small)
        large.append(replace(small[0], name=name, qcow2_bytes=total))
    return sorted(large, key=lambda part: -part.qcow2_bytes)


def _layout(sizes: Sequence[int], area: Box) -> list[Box]:
    normal = squarify.normalize_sizes(sizes, area.width, area.height)
    rectangles = squarify.squarify(normal, area.x, area.y, area.width, area.height)
    return [
        Box(
            x=round(r["x"] + GAP / 2, 1),
            y=round(r["y"] + GAP / 2, 1),
            width=round(max(r["dx"] - GAP, 0.1), 1),
            height=round(max(r["dy"] - GAP, 0.1), 1),
        )
        for r in rectangles
    ]


def _labelled(box: Box, label: str, count: int) -> Box:
    """Give a box its label in the largest letters that fit with the size; where none do, cut it, or leave it out."""
    note = mib(count)
    full = f"{label}  {note}"
    for font in FONTS:
        one_line = len(full) * CHARACTER * font <= box.width - 6
        if one_line and font * 1.4 <= box.height:
            return replace(box, label=full, full=full, font=font)
        if len(max(label, note, key=len)) * CHARACTER * font <= box.width - 6 and font * 2.7 <= box.height:
            return replace(box, label=label, note=note, full=full, font=font)
    font = FONTS[-1]
    room = int((box.width - 6) / (CHARACTER * font))
    if room < LEAST_LABEL or font * 1.4 > box.height:
        return replace(box, full=full)
    text = label if len(label) <= room else f"{label[: room - 1]}…"
    return replace(
        box, label=text, note=note if font * 2.7 <= box.height and len(note) <= room else "", full=full, font=font
    )
