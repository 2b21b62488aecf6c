"""`invoke verify FILE`: boot an image file by itself, and run the checks inside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmimage import host
from vmimage.cache.store import ROOM, Store
from vmimage.commands.build import full_matrix
from vmimage.commands.session import session
from vmimage.disk.raw import RawDisk
from vmimage.formats.all import BY_NAME, kind_of
from vmimage.formats.format import write_raw
from vmimage.spec.load import load_spec
from vmimage.stages.release.manifest import MANIFEST, MachineFacts, Manifest, read_manifest
from vmimage.stages.verify.checks import PACE, known_seconds, note_seconds
from vmimage.stages.verify.matrix import boots
from vmimage.stages.verify.subject import File, Subject, image_facts, opened_disk, require_recorded
from vmimage.stages.verify.verdict import verify
from vmimage.util.console import Console
from vmimage.util.errors import InputError, VerifyError
from vmimage.util.files import fullness_told, sha256_file
from vmimage.util.settings import Options
from vmimage.vm.accelerator import find_accelerator

UNKNOWN_MACHINE = MachineFacts(cpus=2, memory="2 GiB")
"""For an image whose manifest is not there."""


def verify_and_tell(file: Path, chosen: Options, *, matrix: str, json_lines: bool) -> None:
    """Verify a file, and print where the evidence is."""
    with session(chosen, json_lines=json_lines, log="verify") as (console, store):
        chosen = replace(chosen, full_matrix=full_matrix(matrix))
        verdict = verify_file(file, chosen, store, console)
        console.event("result", verdict=verdict)
        console.say(f"passed; verdict, consoles and screenshots: {console.log_dir}/verify")


def verify_file(path: Path, options: Options, store: Store, console: Console) -> Mapping[str, object]:
    """Verify a file by itself: by the manifest beside it if there is one, else by what the image says.

    Raises:
        InputError: There is no such file, or its name tells no format.
        VerifyError: It failed.
    """
    host.require(("qemu-system-x86_64", "qemu-img", "sfdisk", "mke2fs", "unshare"))
    host.find_uefi()
    if not path.is_file():
        raise InputError(f"there is no file {path}", hint="`invoke list` shows the released files")
    kind = kind_of(path)
    if not kind:
        raise InputError(f"{path.name} has no known format", hint=f"names end in {', '.join(BY_NAME)}")
    accelerator = find_accelerator(store.root / "accelerator.json", options.accelerator)
    store.sweep()
    known = manifest_of_file(path, console)
    recorded = [each.sha256 for each in known.files.values() if each.name == path.name] if known else []
    file = File(kind=kind, path=path, recorded_sha256=recorded[0] if recorded else "")
    machines = boots([kind], full=options.full_matrix)
    with (
        console.stage("verify", f"boots {', '.join(boot.name for boot in machines)}") as step,
        store.workspace("verify") as work,
        fullness_told(store.root, ROOM),
    ):
        machine = known.machine if known else UNKNOWN_MACHINE
        facts = facts_of(file, store)
        require_all_claimed(facts, options.spec, known, console)
        subject = Subject(
            files=[file],
            boots=machines,
            facts=facts,
            memory=machine.memory,
            cpus=machine.cpus,
            build_key=known.build_key if known else "",
            seconds=known_seconds(store.root / PACE),
        )
        log_dir = console.log_dir or work
        verdict = verify(subject, work, accelerator, step, evidence=log_dir / "verify")
        note_seconds(store.root / PACE, work)
        shutil.copytree(work, log_dir / "verify", dirs_exist_ok=True)
    return verdict


def manifest_of_file(path: Path, console: Console) -> Manifest | None:
    """Return the manifest beside a file that speaks of it: by its name, or of one with its bytes under another name.

    Returns None if there is none. A manifest.json of something else gives a warning, and is not used.
    """
    beside = path.parent / MANIFEST
    if not os.path.lexists(beside):
        return None
    try:
        known = read_manifest(beside)
    except ValueError as error:
        console.warn(f"{beside} is that of no release, so {path.name} is not compared with it: {error}")
        return None
    if path.name in [file.name for file in known.files.values()]:
        return known
    digest = sha256_file(path)
    for file in known.files.values():
        if file.sha256 == digest:
            console.say(f"{path.name} is {file.name} of {known.image} {known.version}, renamed")
            return known
    console.warn(f"{beside} does not name {path.name}, and no file of it has its bytes: it is not compared with it")
    return None


def require_all_claimed(facts: Mapping[str, Any], spec: Path, known: Manifest | None, console: Console) -> None:
    """Check that an image claims every component that it should have: checks run only for claimed components.

    Args:
        facts: What the image says of itself.
        spec: images.yaml, in which an image of its name may be.
        known: The manifest of its release, if there is one.

    Raises:
        VerifyError: It claims less.
    """
    name, claimed = facts["image"], set(facts["components"])
    images = load_spec(spec).images
    if name not in images:
        console.warn(f"images.yaml has no image {name!r}: only what the image claims to contain is looked for")
    for source, wanted in (
        (MANIFEST, known.components if known else ()),
        ("images.yaml", images[name].components if name in images else ()),
    ):
        missing = [component for component in wanted if component not in claimed]
        if missing:
            raise VerifyError(
                f"the image says that it is {name} and does not claim {', '.join(missing)}, which {source} gives it",
                hint="verify it with the project that built it",
            )


def facts_of(file: File, store: Store) -> Mapping[str, object]:
    """Read what the image in a file says of itself.

    Raises:
        VerifyError: The file is refused, or says nothing.
    """
    with store.workspace("facts") as work:
        require_recorded(file)
        opened = opened_disk(file, work)
        raw = work / "facts.raw"
        write_raw(opened, raw)
        return image_facts(RawDisk(raw), work)
