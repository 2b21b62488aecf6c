"""Container images that are there: which are pinned, which nothing uses.

Kubernetes removes images that nothing uses when the disk fills up, and so does `crictl rmi --prune`; pinned ones stay.
A machine without a network could not get them back: so what it brings, and what its user loads, is pinned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dev_env.archives import brought
from dev_env.bounds import IMAGES_SECONDS
from dev_env.tools import ask, run

PINNED = "io.cri-containerd.pinned=pinned"
"""A label of containerd; Kubernetes and crictl go by it."""
CTR = ["sudo", "k3s", "ctr", "--namespace=k8s.io", "images"]
CRICTL = ["sudo", "k3s", "crictl"]


@dataclass(frozen=True)
class Image:
    """An image as Kubernetes sees it.

    Attributes:
        names: With their tags; an image may have several, or none.
        size: Bytes, as they were pulled.
    """

    identity: str
    names: tuple[str, ...]
    size: int
    pinned: bool

    def __str__(self) -> str:
        return ", ".join(self.names) or self.identity


def listed() -> list[Image]:
    """Return all images that are there."""
    found: Any = ask([*CRICTL, "images", "--output=json"], seconds=IMAGES_SECONDS)
    return [
        Image(
            identity=str(each["id"]),
            names=tuple(each.get("repoTags") or ()),
            size=int(each.get("size") or 0),
            pinned=bool(each.get("pinned")),
        )
        for each in found.get("images") or []
    ]


def digests() -> dict[str, str]:
    """Return name -> digest of what containerd has."""
    # REF, TYPE, DIGEST and more; each image is there by its digest, too.
    rows = [line.split() for line in run([*CTR, "ls"], seconds=IMAGES_SECONDS).splitlines()[1:]]
    return {name: digest for name, _, digest, *_ in rows if not name.startswith("sha256:")}


def pin(names: Iterable[str]) -> None:
    """Keep images from being removed by whoever makes room."""
    for name in names:
        run([*CTR, "label", name, PINNED], seconds=IMAGES_SECONDS)


def lost() -> list[str]:
    """Return the images that the machine brings and that are not there any more."""
    there = {name for image in listed() for name in image.names}
    return sorted(brought().keys() - there)


def unpinned() -> list[str]:
    """Return the images that the machine brings and that somebody could remove."""
    loose = {name for image in listed() if not image.pinned for name in image.names}
    return sorted(brought().keys() & loose)


def unused() -> list[Image]:
    """Return the images that no container uses and nothing keeps: they can be removed, and pulled again if needed."""
    found: Any = ask([*CRICTL, "ps", "--all", "--output=json"], seconds=IMAGES_SECONDS)
    used = {
        word
        for each in found.get("containers") or []
        for word in ((each.get("image") or {}).get("image"), each.get("imageRef"), each.get("imageId"))
    }
    kept = used | brought().keys()
    return [image for image in listed() if not image.pinned and not kept & {image.identity, *image.names}]


def remove(images: Iterable[Image]) -> None:
    """Remove images."""
    run([*CRICTL, "rmi", *(image.identity for image in images)], shown=True, seconds=IMAGES_SECONDS)
