from __future__ import annotations

from xml.etree import ElementTree

import pytest

from vmimage.commands.size.measure import ImageSize, Part
from vmimage.commands.size.treemap import HEIGHT, TITLE, WIDTH, Box, boxes, merged, picture


def part(name: str, count: int, group: str = "packages") -> Part:
    return Part(group=group, name=name, files=1, disk_bytes=2 * count, qcow2_bytes=count)


SIZE = ImageSize(
    parts=(
        part("initrd", 35 << 20, "boot"),
        *(part(f"lib-{i}<&>", (60 << 20) // (i + 1)) for i in range(40)),
        part("helm", 20 << 20, "components"),
        part("free space", 0, "not trimmed"),
    ),
    tar_zst_bytes=1,
)


def area(box: Box) -> float:
    return box.width * box.height


def overlap(one: Box, other: Box) -> bool:
    apart = one.x + one.width <= other.x or other.x + other.width <= one.x
    return not (apart or one.y + one.height <= other.y or other.y + other.height <= one.y)


def test_boxes_lie_in_the_picture_and_over_no_other() -> None:
    placed = boxes(SIZE)
    groups = [group for group, _ in placed]
    parts = [part for _, parts in placed for part in parts]
    for layer in (groups, parts):
        assert all(box.x >= 0 and box.x + box.width <= WIDTH for box in layer)
        assert all(box.y >= TITLE and box.y + box.height <= HEIGHT for box in layer)
        assert not any(overlap(a, b) for i, a in enumerate(layer) for b in layer[:i])


def test_area_is_bytes() -> None:
    placed = {group.full.split("  ")[0]: area(group) for group, _ in boxes(SIZE)}
    expected = SIZE.total("boot").qcow2_bytes / SIZE.total("components").qcow2_bytes
    assert placed["boot"] / placed["components"] == pytest.approx(expected, rel=0.05)
    assert "not trimmed" not in placed


def test_small_parts_become_one_at_its_place() -> None:
    parts = [part("a", 100), part("b", 5), part("c", 4), part("d", 1), part("other", 50, "boot")]
    assert [(p.name, p.qcow2_bytes) for p in merged(parts, "packages", 5)] == [("a", 100), ("b", 5), ("2 smaller", 5)]
    assert [p.name for p in merged(parts, "packages", 4)] == ["a", "b", "c", "d"]


def test_picture_is_xml_whatever_the_names() -> None:
    root = ElementTree.fromstring(picture(SIZE, "a & b <c>", "subtitle"))  # noqa: S314 - our own
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert texts[0] == "a & b <c>"
    assert "lib-0<&>  60.0 MiB" in titles


def test_labels_fit_their_boxes() -> None:
    for group, parts in boxes(SIZE):
        for box in (group, *parts):
            longest = max(len(box.label), len(box.note))
            assert not box.font or longest * box.font * 0.6 <= box.width
