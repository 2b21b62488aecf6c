"""SBOMs: what is in an image, in two documents that other programs read."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import stat
import tarfile
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import zstandard
from referencing import Registry, Resource
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from tests.tools import image_archive, packed
from vmimage.disk.ext4 import Node, Run, Tree
from vmimage.plan import PinnedFile
from vmimage.stages.release.sbom.container_images import ContainerImage, images_in
from vmimage.stages.release.sbom.debian_packages import write_package_root
from vmimage.stages.release.sbom.documents import CYCLONEDX, SPDX, Subject, write_sboms
from vmimage.stages.release.sbom.software import of_pin, of_python
from vmimage.util.errors import VerifyError

DIGEST = "0123456789abcdef" * 4
SUBJECT = Subject(
    image="toolbox", version="20261128-01234567", arch="amd64", summary="tools", made=datetime(2026, 11, 28, tzinfo=UTC)
)
STATUS = """\
Package: dpkg
Status: install ok installed
Priority: required
Essential: yes
Section: admin
Maintainer: Dpkg Developers <dpkg@example.org>
Architecture: amd64
Version: 1.22.21
Depends: libgood1
Description: package management
 for Debian

Package: libgood1
Status: install ok installed
Priority: optional
Section: libs
Maintainer: Good People <good@example.org>
Architecture: amd64
Source: good (1.0-1)
Version: 1.0-1+b1
Description: a library
"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2026 Good People
License: GPL-2+

License: GPL-2+
 The whole text.
"""
IMAGES: dict[str, list[dict[str, bytes]]] = {
    "docker.io/rancher/mirrored-pause:3.6": [],
    "registry.example:5000/a/b:2": [],
}


def tree(folder: Path, texts: dict[str, str]) -> Tree:
    """Return the files of a disk that holds them one after the other."""
    disk, nodes, at = folder / "disk.raw", {}, 0
    with disk.open("wb") as file:
        for inode, (path, text) in enumerate(texts.items()):
            size = file.write(text.encode())
            runs = (Run(at=0, disk=at, length=size),)
            nodes[path] = Node(
                path=path, inode=inode, mode=stat.S_IFREG, uid=0, gid=0, size=size, mtime=0, target="", runs=runs
            )
            at += size
    return Tree(disk, nodes)


def pin(name: str = "helm", **values: Any) -> PinnedFile:
    return PinnedFile(name=name, version="v4.3.1", arch="amd64", sha256=DIGEST, sources=(), **values)


def oci_index(name: str, digest: str) -> bytes:
    entry = {"digest": digest, "annotations": {"io.containerd.image.name": name}}
    return json.dumps({"schemaVersion": 2, "manifests": [entry, {"digest": digest}]}).encode()


@pytest.fixture
def documents(tmp_path: Path) -> dict[str, Any]:
    return {end: json.loads(text) for end, text in written(tmp_path).items()}


def written(folder: Path) -> dict[str, str]:
    """Return the SBOMs of an image with two packages, a program, an archive of images, and a package of Python."""
    copyright_ = "/usr/share/doc/libgood1/copyright"
    python = "/usr/local/lib/python3.13/dist-packages/yes-1.dist-info/METADATA"
    texts = {"/var/lib/dpkg/status": STATUS, copyright_: COPYRIGHT, python: "Name: yes\nVersion: 1\nLicense: odd\n"}
    root = folder / "root"
    write_package_root(tree(folder, texts), root)
    (folder / "images").write_bytes(image_archive(IMAGES))
    helm = of_pin(pin(purl="pkg:golang/helm.sh/helm/v4", license="Apache-2.0"), [])
    images = of_pin(pin("images", license="Somebody's own"), images_in(folder / "images"))
    return write_sboms(SUBJECT, root, [*helm, *images, *of_python(tree(folder, texts))])


def test_cyclonedx_is_what_its_official_schema_asks_for_and_names_everything(documents: dict[str, Any]) -> None:
    schemas = files("cyclonedx.schema") / "_res"
    (bom, *others) = (
        json.loads((schemas / f"{name}.SNAPSHOT.schema.json").read_text()) for name in ("bom-1.6", "spdx", "jsf-0.82")
    )
    registry = Registry().with_resources((schema["$id"], Resource.from_contents(schema)) for schema in others)
    found = documents[CYCLONEDX]
    jsonschema.Draft7Validator(bom, registry=registry).validate(found)
    assert found["specVersion"] == "1.6"
    image = found["metadata"]["component"]
    assert (image["name"], image["version"]) == ("toolbox", SUBJECT.version)
    components = {each["purl"]: each for each in found["components"]}
    assert set(components) == {
        "pkg:deb/debian/dpkg@1.22.21?arch=amd64",
        "pkg:deb/debian/dpkg@1.22.21?arch=source",
        "pkg:deb/debian/libgood1@1.0-1%2Bb1?arch=amd64",
        "pkg:deb/debian/good@1.0-1?arch=source",
        "pkg:golang/helm.sh/helm/v4@v4.3.1",
        f"pkg:generic/images@v4.3.1?checksum=sha256:{DIGEST}",
        "pkg:pypi/yes@1",
    }
    assert components["pkg:golang/helm.sh/helm/v4@v4.3.1"]["hashes"] == [{"alg": "SHA-256", "content": DIGEST}]
    good = components["pkg:deb/debian/good@1.0-1?arch=source"]
    assert good["licenses"][0]["expression"] == "GPL-2.0-or-later"
    archive = components[f"pkg:generic/images@v4.3.1?checksum=sha256:{DIGEST}"]
    assert archive["licenses"] == [{"license": {"name": "Somebody's own"}}], "no expression of SPDX"
    assert {(each["name"], each["version"]) for each in archive["components"]} == {
        ("docker.io/rancher/mirrored-pause", "3.6"),
        ("registry.example:5000/a/b", "2"),
    }
    (top,) = [each for each in found["dependencies"] if each["ref"] == image["bom-ref"]]
    assert {"pkg:golang/helm.sh/helm/v4@v4.3.1", "pkg:pypi/yes@1"} <= set(top["dependsOn"])


def test_spdx_is_what_its_own_validator_asks_for_and_names_the_same(documents: dict[str, Any]) -> None:
    found = documents[SPDX]
    document = JsonLikeDictParser().parse(found)  # type: ignore[no-untyped-call]
    assert validate_full_spdx_document(document) == []
    purls = {ref["referenceLocator"] for each in found["packages"] for ref in each.get("externalRefs", [])}
    bom = documents[CYCLONEDX]
    inner = [one["purl"] for each in bom["components"] for one in each.get("components", [])]
    assert purls == {each["purl"] for each in bom["components"]} | set(inner)
    licenses = {each["name"]: each["licenseDeclared"] for each in found["packages"]}
    assert licenses["helm"] == "Apache-2.0"
    assert licenses["images"] == "NOASSERTION"


def test_sboms_are_the_same_whenever_they_are_written(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    first, second = map(written, folders)
    assert first == second


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_images_of_an_archive_are_found_however_it_is_packed(tmp_path: Path, pack: Any) -> None:
    (tmp_path / "images").write_bytes(pack(image_archive(IMAGES)))
    assert images_in(tmp_path / "images") == [
        ContainerImage(repository="docker.io/rancher/mirrored-pause", tag="3.6"),
        ContainerImage(repository="registry.example:5000/a/b", tag="2"),
    ]


def test_image_that_both_lists_name_has_the_digest_of_its_manifest(tmp_path: Path) -> None:
    """docker's own registry stands in one of them only, as in the real archive of k3s."""
    digest = f"sha256:{DIGEST}"
    manifest = json.dumps([{"Config": "c.json", "RepoTags": ["rancher/pause:3"], "Layers": []}]).encode()
    lists = {"index.json": oci_index("docker.io/rancher/pause:3", digest), "manifest.json": manifest}
    (tmp_path / "images").write_bytes(packed(lists))
    assert images_in(tmp_path / "images") == [
        ContainerImage(repository="docker.io/rancher/pause", tag="3", digest=digest)
    ]


def test_program_holds_no_images(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF" + bytes(1000))
    assert images_in(tmp_path / "program") == []


@pytest.mark.parametrize(
    "content",
    [
        packed({"manifest.json": b"nonsense"}),
        packed({"manifest.json": b'{"RepoTags": ["a:1"]}'}),
        packed({"manifest.json": b"[1]"}),
        packed({"manifest.json": json.dumps([{"RepoTags": ["a\n:1"]}]).encode()}),
        packed({"manifest.json": b"[" * 100_000}),
        packed({"manifest.json": b" " * (5 << 20)}),
        packed({"index.json": oci_index("a:1", "sha256:short")}),
        packed({"index.json": oci_index("a:1", f"md5:{hashlib.sha256().hexdigest()}")}),
        packed({"index.json": b'{"manifests": [[]]}'}),
        zstandard.compress(packed({"other": bytes(10_000)}))[:40],
        gzip.compress(packed({"other": bytes(10_000)}))[:40],
        gzip.compress(b"no archive"),
        b"\x28\xb5\x2f\xfd" + b"\xff" * 40,
    ],
    ids=range(13),
)
def test_archive_that_says_nonsense_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(VerifyError, match="what it says of its container images cannot be read"):
        images_in(tmp_path / "images")


def test_digest_of_an_archive_is_not_called_that_of_the_file_in_it() -> None:
    (found,) = of_pin(pin(members=("linux-amd64/helm",)), [])
    assert found.sha256 == ""
    assert found.purl == f"pkg:generic/helm@v4.3.1?checksum=sha256:{DIGEST}"


def test_python_package_without_a_name_is_refused(tmp_path: Path) -> None:
    path = "/opt/venv/lib/python3/site-packages/odd.dist-info/METADATA"
    with pytest.raises(VerifyError, match=f"{path} of the image gives no name and version"):
        list(of_python(tree(tmp_path, {path: "Name: odd\n"})))


def test_python_of_debian_is_not_listed_twice(tmp_path: Path) -> None:
    path = "/usr/lib/python3/dist-packages/PyYAML-6.dist-info/METADATA"
    assert list(of_python(tree(tmp_path, {path: "Name: PyYAML\nVersion: 6\n"}))) == []


def test_disk_without_packages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="the image has no file /var/lib/dpkg/status"):
        write_package_root(tree(tmp_path, {}), tmp_path / "root")


@pytest.mark.parametrize(
    ("text", "declared"),
    [
        ("MIT OR Apache-2.0", "MIT OR Apache-2.0"),
        ("MIT AND (BSD-3-Clause OR Apache-2.0)", "MIT AND (BSD-3-Clause OR Apache-2.0)"),
        ("(", "NOASSERTION"),
        ("(MIT OR " * 5000 + "MIT" + ")" * 5000, "NOASSERTION"),
        ("MIT WITH MIT", "NOASSERTION"),
        ("Autoconf-exception-3.0", "NOASSERTION"),
        ("MIT OR ()", "NOASSERTION"),
    ],
)
def test_expression_of_several_licences_is_one(tmp_path: Path, text: str, declared: str) -> None:
    write_package_root(tree(tmp_path, {"/var/lib/dpkg/status": STATUS}), tmp_path / "root")
    made = write_sboms(SUBJECT, tmp_path / "root", list(of_pin(pin(license=text), [])))
    packages = {each["name"]: each["licenseDeclared"] for each in json.loads(made[SPDX])["packages"]}
    assert packages["helm"] == declared
    assert "helm" in made[CYCLONEDX]


# What reads the files leaves them open when it fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "wrong",
    [
        STATUS.replace("Source: good (1.0-1)", "Source: good (a b)"),
        STATUS.replace("Status: install ok installed", "Status: installed"),
    ],
)
def test_packages_that_no_sbom_can_speak_of_are_an_error(tmp_path: Path, wrong: str) -> None:
    write_package_root(tree(tmp_path, {"/var/lib/dpkg/status": wrong}), tmp_path / "root")
    with pytest.raises(VerifyError, match="no SBOM can be written") as refused:
        write_sboms(SUBJECT, tmp_path / "root", [])
    assert refused.value.hint
    del refused
    gc.collect()  # here, where the warning of it is ignored


def test_packages_that_do_not_keep_to_utf8_are_in_the_sbom(tmp_path: Path) -> None:
    texts = {"/var/lib/dpkg/status": STATUS, "/usr/share/doc/libgood1/copyright": COPYRIGHT}
    found = tree(tmp_path, texts)
    found.disk.write_bytes(found.disk.read_bytes().replace(b"Good", b"G\xf6\xf6d"))
    write_package_root(found, tmp_path / "root")
    assert "G\ufffd\ufffdd People" in write_sboms(SUBJECT, tmp_path / "root", [])[SPDX]


def header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("index.json")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (header(tarfile.XHDTYPE, 1 << 30) + bytes(17 << 20), "header of more than"),
        (header(tarfile.GNUTYPE_LONGNAME, 1 << 30) + bytes(17 << 20), "header of more than"),
        (header(tarfile.REGTYPE, 1 << 40), "more than 64 GiB; pack"),
        (packed({"index.json": b"{}"})[:1024] + packed({"index.json": b"{}"}), "two files index.json"),
    ],
)
def test_archives_of_images_are_bounded_and_say_one_thing(tmp_path: Path, archive: bytes, why: str) -> None:
    (tmp_path / "images").write_bytes(zstandard.compress(archive))
    with pytest.raises(VerifyError, match=why):
        images_in(tmp_path / "images")
