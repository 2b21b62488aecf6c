"""Export: sealed disk -> the files that people download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmimage.console import Step, human_bytes
from vmimage.plan import Plan
from vmimage.run import run
from vmimage.spec import FormatName
from vmimage.store import sha256_file


def file_name(plan: Plan, kind: FormatName) -> str:
    """Return the name of an exported file, before a version is known."""
    return f"{plan.name}-{plan.base.arch}.{kind}"


def qcow2_command(disk: Path, to: Path, compression: str) -> list[str]:
    """Return the command that writes a compressed qcow2.

    Without `-W` (writes out of order) the same disk gives the same bytes.
    """
    options = f"compression_type={compression}"
    return ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options, str(disk), str(to)]


def make_export(plan: Plan, disk: Path, work: Path, step: Step) -> Mapping[str, object]:
    """Write every format of the image into `work`; notes name, size and SHA-256 of each."""
    files: dict[str, dict[str, object]] = {}
    if plan.image.formats.qcow2:
        step.now("qcow2")
        path = work / file_name(plan, "qcow2")
        run(qcow2_command(disk, path, plan.image.formats.qcow2.compression))
        run(["qemu-img", "check", "-q", path])
        files["qcow2"] = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    total = sum(path.stat().st_size for path in work.iterdir())
    step.outcome = f"{', '.join(files)}: {human_bytes(total)}"
    return {"files": files}
