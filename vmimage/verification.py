"""Verifying a file by itself, and what a verdict depends on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from vmimage import PROJECT, host
from vmimage.accelerator import find_accelerator
from vmimage.checks import DISK_TESTS, test_files
from vmimage.console import Console
from vmimage.disk import RawDisk
from vmimage.errors import InputError, VerifyError
from vmimage.files import sha256_file
from vmimage.formats.opened import kind_of
from vmimage.matrix import Boot, boots
from vmimage.payload import release_facts
from vmimage.plan import Plan, digests
from vmimage.profiles import PROFILES
from vmimage.run import run
from vmimage.settings import Options
from vmimage.spec import FormatName
from vmimage.stages import release as releasing
from vmimage.stages.verify import File, Subject, image_facts, opened_disk, require_recorded, verify
from vmimage.store import Store

VERIFY_EDITION = 3


def verify_inputs(
    plan: Plan,
    files: Mapping[FormatName, Mapping[str, object]],
    machines: Sequence[Boot],
    tools: Mapping[str, str],
    firmware: host.Firmware,
) -> dict[str, object]:
    """Return what a verdict depends on: the bytes, the checks, and the machines."""
    checks = ["conftest.py", *DISK_TESTS, *test_files(release_facts(plan))]
    return {
        "edition": VERIFY_EDITION,
        "sha256": {kind: facts["sha256"] for kind, facts in files.items()},
        "facts": release_facts(plan),
        "machine": plan.image.machine.model_dump(),
        "machines": {boot.name: vars(PROFILES[boot.profile]) for boot in machines},
        "firmware": {str(path): sha256_file(path) for path in (firmware.code, firmware.variables)},
        "files": digests(PROJECT, [Path("tests/image") / name for name in checks]),
        "tools": {"qemu-system-x86_64": tools["qemu-system-x86_64"]},
    }


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
        raise InputError(f"{path.name} has no known format", hint=f"names end in {', '.join(get_args(FormatName))}")
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
        )
        log_dir = console.log_dir or work
        verdict = verify(subject, work, accelerator, step, evidence=log_dir / "verify")
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
        run(["qemu-img", "convert", "-f", opened.format, "-O", "raw", opened.path, raw], error=VerifyError)
        return image_facts(RawDisk(raw), work)
