"""What is verified: exported files, and what the image in them should be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmimage.disk.ext4 import read_tree
from vmimage.disk.raw import RawDisk
from vmimage.formats.all import open_disk
from vmimage.formats.format import Opened
from vmimage.stages.verify.matrix import Boot
from vmimage.util.errors import HostError, VerifyError, VmimageError
from vmimage.util.files import sha256_file

VERDICT = "verdict.json"


@dataclass(frozen=True, kw_only=True)
class File:
    """An exported file; `recorded_sha256` is what its manifest says, if there is one."""

    kind: str
    path: Path
    recorded_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is verified, and what it should be.

    Attributes:
        boots: In which machines the files are booted.
        facts: What the image should say of itself: image, components, versions, build.
        build_key: The public key of its bake, if known.
        seconds: File of checks -> how long it took before, by which they are dealt to machines.
    """

    files: Sequence[File]
    boots: Sequence[Boot]
    facts: Mapping[str, object]
    memory: str
    cpus: int
    build_key: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


def image_facts(disk: RawDisk, work: Path) -> Mapping[str, object]:
    """Read what an image says of itself.

    Raises:
        VerifyError: It says nothing, so vmimage did not make it.
    """
    try:
        facts = json.loads(read_tree(disk, work).read("/etc/vmimage/release.json"))
        texts = [facts["image"], *facts["components"], *facts["versions"], *facts["versions"].values()]
        if not isinstance(facts["components"], list) or not all(isinstance(each, str) for each in texts):
            raise TypeError
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, VmimageError) as error:
        raise VerifyError(
            "the image has no readable /etc/vmimage/release.json, so it is not known what it should contain",
            hint="verify images that vmimage built",
        ) from error
    return dict(facts)


def require_recorded(file: File) -> str:
    """Return a file's SHA-256.

    Raises:
        VerifyError: It is another than its manifest says.
    """
    digest = sha256_file(file.path)
    if file.recorded_sha256 not in ("", digest):
        raise VerifyError(
            f"{file.path.name} is not what its manifest says\n"
            f"    manifest {file.recorded_sha256}\n    found    {digest}",
            hint="download or build it again",
        )
    return digest


def opened_disk(file: File, work: Path) -> Opened:
    """Open a file as its hypervisor would, in a folder of its own below `work`.

    Raises:
        VerifyError: It is refused, with the reason.
        HostError: This host cannot read or unpack it, so nothing is known of it; its disk is full, for instance.
    """
    folder = work / f"disk-{file.kind}"
    folder.mkdir(parents=True)
    try:
        return open_disk(file.kind, file.path, folder)
    except OSError as error:
        raise HostError(f"{file.path.name} cannot be read, or its disk not be unpacked: {error}") from error
    except ValueError as error:
        raise VerifyError(f"{file.path.name} is refused: {error}", hint="download or build it again") from error
