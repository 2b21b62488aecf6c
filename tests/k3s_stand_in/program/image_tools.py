"""`ctr` and `crictl`, as far as they are asked about images."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from tests.k3s_stand_in.program.images import PINNED, Image, Images, full

TYPE = "application/vnd.oci.image.manifest.v1+json"
CONTAINERS = "agent/containers.json"
"""Where the kubelet writes down what `crictl ps` shows."""


def ctr(data: Path, arguments: list[str]) -> None:
    """Do what `ctr images` is asked for."""
    parser = argparse.ArgumentParser("ctr")
    for options in (("-n", "--namespace"), ("-a", "--address")):
        parser.add_argument(*options)
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("words", nargs="*")
    chosen, _ = parser.parse_known_intermixed_args(arguments)
    images, words = Images(data), chosen.words
    if words[:1] not in (["images"], ["image"], ["i"]) or len(words) < 2:
        sys.exit(f"the stand-in's ctr does not know {' '.join(words)}")
    what, names = words[1], words[2:]
    if what in ("ls", "list"):
        print("\n".join(image.name for image in images.all()) if chosen.quiet else table(images.all()))
    elif what == "import":
        for name in import_file(images, names[0]):
            print(f"{name} saved")
    elif what == "label":
        label(images, *names)
    elif what in ("rm", "remove", "delete", "del"):
        remove_names(images, names)
    else:
        sys.exit(f"the stand-in's ctr does not know images {what}")


def label(images: Images, name: str, *wanted: str) -> None:
    """Set labels of an image; an empty value removes one."""
    with images.changing() as found:
        image = found.get(name) or sys.exit(f'ctr: image "{name}": not found')
        labels = dict(each.partition("=")[::2] for each in wanted)
        kept = {key: value for key, value in {**image.labels, **labels}.items() if value}
        found[image.name] = replace(image, labels=kept)
        print(labels_text(found[image.name]))


def remove_names(images: Images, names: list[str]) -> None:
    """Remove images by their names."""
    with images.changing() as found:
        for name in names:
            if found.pop(name, None):
                print(name)
            else:
                print(f'ERRO[0000] unable to delete {name} error="image \\"{name}\\": not found"', file=sys.stderr)


def import_file(images: Images, path: str) -> list[str]:
    """Take in an archive, of a file or of standard input."""
    try:
        return images.import_archive(sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes())
    except (OSError, ValueError) as error:
        sys.exit(f"ctr: {error}")


def table(found: list[Image]) -> str:
    """Return images as `ctr images ls` shows them."""
    rows = [["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]]
    rows += [[each.name, TYPE, each.digest, size_text(each.size), "linux/amd64", labels_text(each)] for each in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(" ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def size_text(size: float) -> str:
    """Return a size as containerd writes it."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def labels_text(image: Image) -> str:
    """Return labels as containerd writes them."""
    return ",".join(f"{key}={value}" for key, value in sorted(image.labels.items())) or "-"


def crictl(data: Path, arguments: list[str]) -> None:
    """Do what `crictl images`, `rmi` and `ps` are asked for."""
    parser = argparse.ArgumentParser("crictl")
    parser.add_argument("-o", "--output", default="table")
    for options in (("-a", "--all"), ("-q", "--quiet"), ("--prune",)):
        parser.add_argument(*options, action="store_true")
    parser.add_argument("words", nargs="*")
    chosen, _ = parser.parse_known_intermixed_args(arguments)
    images, what, names = Images(data), chosen.words[0] if chosen.words else "", chosen.words[1:]
    if what in ("images", "image", "img"):
        found = listed(images.all())
        if chosen.output == "json":
            print(json.dumps({"images": found}, indent=2))
        else:
            print("\n".join(str(each["id"]) if chosen.quiet else row(each) for each in found))
    elif what == "rmi":
        remove(images, names, prunable(images.all(), containers(data)) if chosen.prune else [])
    elif what == "ps":
        found = containers(data)
        print(json.dumps({"containers": found}, indent=2) if chosen.output == "json" else
              "\n".join(str(each["id"]) for each in found))  # fmt: skip
    else:
        sys.exit(f"the stand-in's crictl does not know {what}")


def row(image: dict[str, object]) -> str:
    """Return a line of `crictl images`."""
    tags = image["repoTags"]
    return f"{', '.join(tags) if isinstance(tags, list) else ''} {str(image['id'])[7:20]} {image['size']}"


def listed(images: list[Image]) -> list[dict[str, object]]:
    """Return images as the container runtime interface lists them: one for all names of the same."""
    found: dict[str, list[Image]] = {}
    for image in images:
        found.setdefault(image.id, []).append(image)
    return [
        {
            "id": number,
            "repoTags": [each.name for each in same if each.name != number],
            "repoDigests": [],
            "size": str(same[0].size),
            "pinned": any(each.labels.get(PINNED) == "pinned" for each in same),
        }
        for number, same in found.items()
    ]


def containers(data: Path) -> list[dict[str, object]]:
    """Return the containers that the kubelet wrote down."""
    path = data / CONTAINERS
    return list(json.loads(path.read_text())) if path.exists() else []


def prunable(images: list[Image], running: list[dict[str, object]]) -> list[str]:
    """Return the IDs of images that no container uses and that are not pinned; pods' own networks do not count."""
    used = {each["imageRef"] for each in running}
    return [str(each["id"]) for each in listed(images) if not each["pinned"] and each["id"] not in used]


def remove(images: Images, names: list[str], ids: list[str]) -> None:
    """Remove images by names or (beginnings of) IDs."""
    with images.changing() as found:
        for name in names:
            exact = found.get(full(name))
            wanted = {image.id for image in found.values() if image.id.removeprefix("sha256:").startswith(
                name.removeprefix("sha256:"))} | ({exact.id} if exact else set())  # fmt: skip
            if not wanted:
                sys.exit(f'no such image "{name}"')
            ids = [*ids, *wanted]
        for image in [image for image in found.values() if image.id in ids]:
            del found[image.name]
            if image.name != image.id:
                print(f"Deleted: {image.name}")
