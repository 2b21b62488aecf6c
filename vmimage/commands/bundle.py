"""`invoke bundle`: newer k3s, kubectl and helm in one file, for `dev-env update` in machines that run.

Its form is described in the guest's dev_env/update.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from vmimage import pipeline
from vmimage.commands.fetch import fetched
from vmimage.commands.session import session
from vmimage.formats.archive import BLOCK, append, finish, member
from vmimage.plan import Plan
from vmimage.stages.fetch import file_of
from vmimage.util.errors import InputError
from vmimage.util.files import sha256_file, written_beside
from vmimage.util.settings import Options

INDEX = "update.json"
UPDATED = ("k3s", "k3s-airgap-images", "kubectl", "helm")
"""Pins that the guest knows to replace."""


def write_bundle(plan: Plan, files: Mapping[str, Path], to: Path, work: Path) -> str:
    """Write a bundle of an image's pins; returns its SHA-256.

    Args:
        files: Pin name -> what was fetched and verified: a file, or the archive that it comes in.
        work: A folder for what is taken out of archives.

    Raises:
        InputError: The image has nothing that could be updated, the file exists, or its folder does not.
    """
    pins = [pin for pin in plan.files if pin.name in UPDATED]
    if not pins:
        raise InputError(f"{plan.name} has none of {', '.join(UPDATED)}", hint="choose another image")
    # A link that leads nowhere is there, too.
    if os.path.lexists(to):
        raise InputError(f"{to} exists", hint="remove it, or give another name with --output")
    if not to.parent.is_dir():
        raise InputError(f"--output {to}: there is no folder {to.parent}", hint="make it first")
    with written_beside(to) as beside, beside.open("wb") as archive:
        inner = {pin.name: file_of(pin, files[pin.name], work) for pin in pins}
        facts = {
            pin.name: {
                "version": pin.version,
                "sha256": sha256_file(inner[pin.name]) if pin.members else pin.sha256,
            }
            for pin in pins
        }
        index = {"image": plan.name, "files": facts}
        append(archive, INDEX, (json.dumps(index, indent=2) + "\n").encode())
        for pin in pins:
            size = inner[pin.name].stat().st_size
            archive.write(member(pin.name, size))
            with inner[pin.name].open("rb") as source:
                shutil.copyfileobj(source, archive, 1 << 20)
            archive.write(bytes(-size % BLOCK))
        finish(archive)
    return sha256_file(to)


def make_bundle(image: str | None, chosen: Options, to: Path, *, json: bool) -> None:
    """Write a bundle of an image's pins, and print how a machine takes it."""
    with session(chosen, json_lines=json, log="bundle") as (console, store):
        store.sweep()
        made = pipeline.plan_image(image, chosen)
        files = fetched(made, store, console)
        # Not beside the bundle: nobody would tidy up there after a kill.
        with store.workspace("bundle") as work:
            digest = write_bundle(made, files, to, work)
        console.event("result", path=str(to), sha256=digest)
        console.say(f"written: {to}\nin the machine: sudo dev-env update --from {to.name} --sha256 {digest}")
