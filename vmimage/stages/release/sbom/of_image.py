"""The SBOMs of a baked image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from vmimage.disk.ext4 import read_tree
from vmimage.disk.raw import RawDisk
from vmimage.plan import PinnedFile
from vmimage.stages.release.sbom.container_images import images_in
from vmimage.stages.release.sbom.debian_packages import write_package_root
from vmimage.stages.release.sbom.documents import Subject, write_sboms
from vmimage.stages.release.sbom.software import Software, of_pin, of_python


def sboms_of_image(
    subject: Subject, disk: Path, pins: Iterable[PinnedFile], file_of: Callable[[str], Path], work: Path
) -> dict[str, str]:
    """Return the SBOMs of an image, by the end of their names; they list packages, pins, container images and Python.

    Args:
        disk: Its sealed disk, raw.
        file_of: Returns the file of a SHA-256.
        work: A folder for temporary files.

    Raises:
        VerifyError: What the disk or an archive says of its software cannot be read.
    """
    tree = read_tree(RawDisk(disk), work)
    root = work / "packages"
    write_package_root(tree, root)
    others: list[Software] = []
    for pin in pins:
        # What is taken out of an archive is a program.
        others += of_pin(pin, [] if pin.members else images_in(file_of(pin.sha256)))
    others += of_python(tree)
    return write_sboms(subject, root, others)
