"""What an image holds beside Debian's packages, as one model from which both kinds of SBOM are written."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email import message_from_bytes

from packageurl import PackageURL

from vmimage.disk.ext4 import Tree
from vmimage.plan import PinnedFile
from vmimage.stages.release.sbom.container_images import ContainerImage
from vmimage.util.errors import VerifyError

DEBIANS_PYTHON = "/usr/lib/python3/dist-packages/"
"""What lies there came with a package of Debian, which is in the SBOM itself."""
PYTHON_METADATA = re.compile(r".*/(?:dist|site)-packages/[^/]+\.(?:dist-info/METADATA|egg-info/PKG-INFO)")


@dataclass(frozen=True, kw_only=True)
class Software:
    """A piece of software in an image.

    Attributes:
        purl: Its name for all who deal with packages, https://github.com/package-url/purl-spec
        license: An SPDX expression; nothing where it is not known.
        sha256: Of the file in the image; nothing where it has none.
        container: It is a container image.
        inside: The `purl` of what it lies in; nothing for the image itself.
    """

    name: str
    version: str
    purl: str
    license: str = ""
    sha256: str = ""
    container: bool = False
    inside: str = ""


def of_pin(file: PinnedFile, images: Iterable[ContainerImage]) -> Iterator[Software]:
    """Yield what a pinned file is, and the container images that it holds; pure."""
    purl = pin_purl(file)
    # The digest of a file that is taken out of an archive is not known, only that of the archive.
    digest = "" if file.members else file.sha256
    yield Software(name=file.name, version=file.version, purl=purl, license=file.license, sha256=digest)
    for image in images:
        yield Software(name=image.repository, version=image.tag, purl=image_purl(image), container=True, inside=purl)


def pin_purl(file: PinnedFile) -> str:
    """Return the purl of a pin: of what images.yaml calls it, if it does; else of a file of this digest."""
    if file.purl:
        return PackageURL.from_string(file.purl)._replace(version=file.version).to_string()
    digest = {"checksum": f"sha256:{file.sha256}"}
    return PackageURL(type="generic", name=file.name, version=file.version, qualifiers=digest).to_string()


def image_purl(image: ContainerImage) -> str:
    """Return the purl of a container image: by digest, if its archive tells that of its manifest; else by tag."""
    qualifiers = {"repository_url": image.repository, "tag": image.tag}
    name = image.repository.rsplit("/", 1)[-1]
    return PackageURL(type="oci", name=name, version=image.digest or None, qualifiers=qualifiers).to_string()


def of_python(tree: Tree) -> Iterator[Software]:
    """Yield the Python packages of an image that did not come with a package of Debian.

    Raises:
        VerifyError: One has no name and version.
    """
    for path, node in sorted(tree.nodes.items()):
        if path.startswith(DEBIANS_PYTHON) or not stat.S_ISREG(node.mode) or not PYTHON_METADATA.fullmatch(path):
            continue
        told = message_from_bytes(tree.read(path))
        name, version = str(told["Name"] or ""), str(told["Version"] or "")
        if not name or not version:
            raise VerifyError(f"{path} of the image gives no name and version of a Python package")
        purl = PackageURL(type="pypi", name=name, version=version).to_string()
        yield Software(name=name, version=version, purl=purl, license=str(told["License-Expression"] or ""))
