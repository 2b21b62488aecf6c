"""SBOMs of an image as CycloneDX 1.6 and SPDX 2.3: Debian's packages as debsbom describes them, and all the rest.

Sources: https://cyclonedx.org/docs/1.6/json/ and https://spdx.github.io/spdx-spec/v2.3/.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from debsbom.generate import Debsbom
from debsbom.sbom import SBOMType
from packageurl import PackageURL
from spdx_tools.spdx.model.checksum import Checksum, ChecksumAlgorithm
from spdx_tools.spdx.model.document import Document
from spdx_tools.spdx.model.package import ExternalPackageRef, ExternalPackageRefCategory, Package, PackagePurpose
from spdx_tools.spdx.model.relationship import Relationship, RelationshipType
from spdx_tools.spdx.model.spdx_no_assertion import SpdxNoAssertion
from spdx_tools.spdx.writer.json.json_writer import write_document_to_stream

from vmimage.stages.release.sbom.licenses import expression
from vmimage.stages.release.sbom.software import Software
from vmimage.util.errors import VerifyError

# It tells of every package that names no maintainer.
logging.getLogger("debsbom").addHandler(logging.NullHandler())
logging.getLogger("debsbom").propagate = False


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The image that SBOMs speak of; `made` is when they are written."""

    image: str
    version: str
    arch: str
    summary: str
    made: datetime

    @property
    def urn(self) -> str:
        """A name that no other image has, unless it has the same name and version."""
        return f"urn:x-vmimage:{self.image}:{self.version}:{self.arch}"


CYCLONEDX, SPDX = ".cdx.json", ".spdx.json"
"""Ends of names, as the programs that read such documents expect them."""


def write_sboms(subject: Subject, package_root: Path, others: Sequence[Software]) -> dict[str, str]:
    """Return the SBOMs of an image, by the end of their names; the same for the same arguments.

    Args:
        package_root: A folder with the files of `write_package_root`.
        others: What did not come as a package of Debian.

    Raises:
        VerifyError: The libraries make none of what these files say.
    """
    # What they raise for a field of another form than Debian's is no closed list.
    try:
        return _written(subject, package_root, others)
    except Exception as error:
        raise VerifyError(
            f"no SBOM can be written of what the image says of its packages: {error or type(error).__name__!s:.500}",
            hint="which package is not one of Debian's? `dpkg-query -W` in the image lists them",
        ) from error


def _written(subject: Subject, package_root: Path, others: Sequence[Software]) -> dict[str, str]:
    uuid = uuid5(NAMESPACE_URL, subject.urn)
    packages = Debsbom(
        subject.image,
        root=package_root,
        distro_version=subject.version,
        distro_arch=subject.arch,
        distro_summary=subject.summary,
        cdx_serialnumber=uuid,
        spdx_namespace=urlparse(f"{subject.urn}:{uuid}"),
        timestamp=subject.made,
        with_licenses=True,
    )
    packages.scan()
    bom = packages.generate(SBOMType.CycloneDX)
    add_to_cyclonedx(bom, others)
    document = packages.generate(SBOMType.SPDX)
    add_to_spdx(document, others)
    stream = io.StringIO()
    write_document_to_stream(document, stream)
    return {CYCLONEDX: _ordered(JsonV1Dot6(bom).output_as_string()), SPDX: _ordered(stream.getvalue())}


def add_to_cyclonedx(bom: Bom, others: Iterable[Software]) -> None:
    """Add software to what a CycloneDX document lists: what lies in another piece beneath that one."""
    components = {each.purl: _component(each) for each in others}
    for each in others:
        (components[each.inside].components if each.inside else bom.components).add(components[each.purl])
    image = bom.metadata.component
    assert image  # noqa: S101 - debsbom sets it
    top = [components[each.purl].bom_ref for each in others if not each.inside]
    for entry in bom.dependencies:
        if entry.ref == image.bom_ref:
            entry.dependencies.update(Dependency(ref) for ref in top)


def _component(software: Software) -> Component:
    return Component(
        type=ComponentType.CONTAINER if software.container else ComponentType.APPLICATION,
        name=software.name,
        version=software.version,
        bom_ref=software.purl,
        purl=PackageURL.from_string(software.purl),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=software.sha256)] if software.sha256 else [],
        licenses=_licenses(software.license),
    )


def _licenses(text: str) -> list[License]:
    if not text:
        return []
    return [DisjunctiveLicense(name=text) if expression(text) is None else LicenseExpression(text)]


def add_to_spdx(document: Document, others: Iterable[Software]) -> None:
    """Add software to what an SPDX document lists."""
    (image,) = [
        each.related_spdx_element_id
        for each in document.relationships
        if each.relationship_type == RelationshipType.DESCRIBES
    ]
    for each in others:
        document.packages.append(_package(each))
        place = spdx_id(each.inside) if each.inside else image
        document.relationships.append(Relationship(spdx_id(each.purl), RelationshipType.CONTAINED_BY, place))


def spdx_id(purl: str) -> str:
    """Return the identifier of software in an SPDX document, which has few characters."""
    return f"SPDXRef-{re.sub(r'[^A-Za-z0-9.-]+', '-', purl)}"


def _package(software: Software) -> Package:
    declared = expression(software.license)
    return Package(
        spdx_id=spdx_id(software.purl),
        name=software.name,
        version=software.version,
        download_location=SpdxNoAssertion(),
        files_analyzed=False,
        license_concluded=SpdxNoAssertion(),
        license_declared=SpdxNoAssertion() if declared is None else declared,
        copyright_text=SpdxNoAssertion(),
        checksums=[Checksum(ChecksumAlgorithm.SHA256, software.sha256)] if software.sha256 else [],
        external_references=[ExternalPackageRef(ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", software.purl)],
        primary_package_purpose=PackagePurpose.CONTAINER if software.container else PackagePurpose.APPLICATION,
    )


def _ordered(document: str) -> str:
    """Return a document with its lists in order: the libraries write sets as they come, and no order means anything."""
    return json.dumps(_sorted(json.loads(document)), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(each) for key, each in value.items()}
    if isinstance(value, list):
        return sorted(map(_sorted, value), key=lambda each: json.dumps(each, sort_keys=True))
    return value
