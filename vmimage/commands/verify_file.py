"""`invoke verify FILE`: boot an image file by itself, and run the checks inside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vmimage import host
from vmimage.cache.store import Store
from vmimage.commands.build import full_matrix
from vmimage.commands.session import session
from vmimage.disk.raw import RawDisk
from vmimage.formats.all import BY_NAME, kind_of
from vmimage.formats.format import write_raw
from vmimage.stages.release import dist as releasing
from vmimage.stages.verify.checks import PACE, known_seconds, note_seconds
from vmimage.stages.verify.matrix import boots
from vmimage.stages.verify.subject import File, Subject, image_facts, opened_disk, require_recorded
from vmimage.stages.verify.verdict import verify
from vmimage.util.console import Console
from vmimage.util.errors import InputError
from vmimage.util.settings import Options
from vmimage.vm.accelerator import find_accelerator


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
    beside = path.parent / releasing.MANIFEST
    known = json.loads(beside.read_text()) if beside.is_file() else {}
    recorded = {file["name"]: file["sha256"] for file in known.get("files", {}).values()}
    file = File(kind=kind, path=path, recorded_sha256=recorded.get(path.name, ""))
    machines = boots([kind], full=options.full_matrix)
    with (
        console.stage("verify", f"boots {', '.join(boot.name for boot in machines)}") as step,
        store.workspace("verify") as work,
    ):
        machine = known.get("machine", {"memory": "2 GiB", "cpus": 2})
        subject = Subject(
            files=[file],
            boots=machines,
            facts=facts_of(file, store),
            memory=machine["memory"],
            cpus=machine["cpus"],
            build_key=known.get("build_key", ""),
            seconds=known_seconds(store.root / PACE),
        )
        log_dir = console.log_dir or work
        verdict = verify(subject, work, accelerator, step, evidence=log_dir / "verify")
        note_seconds(store.root / PACE, work)
        shutil.copytree(work, log_dir / "verify", dirs_exist_ok=True)
    return verdict


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
