"""`invoke size`: finds the disk of an image, and shows what `size` measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from vmimage import pipeline
from vmimage.cache.store import ROOM
from vmimage.commands.session import session
from vmimage.commands.size.measure import GROUPS, ImageSize, component_files, measure, mib
from vmimage.commands.size.treemap import picture
from vmimage.formats.format import write_raw
from vmimage.formats.qcow2 import HEADER, Qcow2Options, cluster_size, write_qcow2
from vmimage.spec.load import load_spec
from vmimage.spec.model import Spec
from vmimage.stages.bake.stage import DISK, BakeStage
from vmimage.stages.release import dist as releasing
from vmimage.stages.verify.subject import File, opened_disk
from vmimage.util.console import Console
from vmimage.util.errors import InputError
from vmimage.util.files import fullness_told, written_beside
from vmimage.util.model import Model
from vmimage.util.settings import Options

MADE_BY, HEAD_BYTES = b'data-made-by="invoke size"', 200
"""In the first bytes of a picture."""
SHOWN = 12
"""Parts of a group that the table names."""


def show_size(
    bake: BakeStage, spec: Spec, dist: Path, console: Console, *, version: str | None, output: Path | None
) -> None:
    """Print what the bytes of an image are: of a release if there is one, else of what is baked and in the cache.

    Args:
        version: Of a release; the latest when not given.
        output: An SVG file to write.

    Raises:
        InputError: There is neither, or the picture cannot be written.
    """
    if output:
        require_replaceable(output)
    image = spec.images[bake.image]
    store = bake.context.store
    with store.workspace("size") as work, fullness_told(store.root, ROOM):
        name, disk, qcow2 = _open(bake, image.formats.chosen.get("qcow2"), dist, work, version)
        with qcow2.open("rb") as file:
            cluster = cluster_size(file.read(HEADER.size))
        size = measure(disk, work, component_files(image.components, spec.components), cluster)
        file_bytes = qcow2.stat().st_size
    for part in size.parts:
        console.event("part", **asdict(part))
    everything = size.total()
    result = {
        "image": name,
        "disk_bytes": everything.disk_bytes,
        "qcow2_bytes": file_bytes,
        "tar_zst_bytes": size.tar_zst_bytes,
        "ratio": round(file_bytes / size.tar_zst_bytes, 4),
    }
    for line in table(name, size, file_bytes):
        console.say(line)
    if output:
        subtitle = f"Area: bytes in the compressed image. {mib(everything.disk_bytes)} on the disk."
        try:
            with written_beside(output) as beside:
                beside.write_text(picture(size, f"{name}: {mib(file_bytes)} as qcow2", subtitle))
        except OSError as error:
            raise InputError(f"cannot write {output}: {error.strerror}", hint="give another --output") from error
        console.say(f"\nwritten: {output}")
    console.event("result", **result, output=str(output or ""))


def require_replaceable(output: Path) -> None:
    """Check that a picture may be written to a file.

    Raises:
        InputError: Its name is no picture's, or it is there and was not made by `invoke size`.
    """
    if output.suffix != ".svg":
        raise InputError(f"--output {output}: the picture is an SVG", hint=f"--output {output.with_suffix('.svg')}")
    if not os.path.lexists(output):
        return
    head = b""
    if output.is_file():
        with output.open("rb") as file:
            head = file.read(HEAD_BYTES)
    if MADE_BY not in head:
        raise InputError(f"{output} exists, and `invoke size` did not make it", hint="give another --output")


def table(name: str, size: ImageSize, file_bytes: int) -> Iterator[str]:
    """Yield the lines for people; pure."""
    everything = size.total()
    yield f"{name}\n\n{'':<42} {'files':>6} {'on the disk':>12} {'in the qcow2':>13}"
    for group in GROUPS:
        total = size.total(group)
        share = f"{100 * total.qcow2_bytes / everything.qcow2_bytes:3.0f} %"
        yield _line(group, total.files, total.disk_bytes, total.qcow2_bytes, share)
        parts = [part for part in size.parts if part.group == group]
        for part in parts[:SHOWN]:
            yield _line(f"  {part.name}", part.files, part.disk_bytes, part.qcow2_bytes)
        if rest := parts[SHOWN:]:
            sums = [sum(getattr(part, key) for part in rest) for key in ("files", "disk_bytes", "qcow2_bytes")]
            yield _line(f"  {len(rest)} smaller", *sums)
    yield _line("qcow2's own tables", 0, 0, file_bytes - everything.qcow2_bytes)
    yield _line("together", everything.files, everything.disk_bytes, file_bytes)
    ratio = f"{file_bytes / size.tar_zst_bytes:.3f}"
    yield f"\nThe same files as a tar, zstd of the same level: {mib(size.tar_zst_bytes)}; the qcow2 is {ratio} of it."


def _line(name: str, files: int, disk: int, qcow2: int, share: str = "") -> str:
    return f"{name:<42} {files or '':>6} {mib(disk):>12} {mib(qcow2):>13} {share:>6}".rstrip()


def _open(
    bake: BakeStage, options: Model | None, dist: Path, work: Path, version: str | None
) -> tuple[str, Path, Path]:
    """Return what it is, its raw disk, and its qcow2 compressed by zstd.

    Args:
        options: Of the qcow2 that the image is released as, if it is.
    """
    baked = bake.find()
    qcow2 = work / "disk.qcow2"
    try:
        release = releasing.choose(dist, bake.image, version)
    except InputError:
        if version or not baked:
            raise
        write_qcow2(baked.path / DISK, qcow2, compression="zstd")
        return f"{bake.image}, baked and not released", baked.path / DISK, qcow2
    disk = work / "disk.raw"
    kind = release.first_kind
    opened = opened_disk(File(kind=kind, path=release.require_file(kind)), work)
    if opened.format == "raw":
        disk = opened.path
    else:
        write_raw(opened, disk)
    if kind == "qcow2" and isinstance(options, Qcow2Options) and options.compression == "zstd":
        return f"{bake.image} {release.version}", disk, release.file(kind)
    write_qcow2(disk, qcow2, compression="zstd")
    return f"{bake.image} {release.version}", disk, qcow2


def tell_size(image: str | None, version: str | None, chosen: Options, *, output: Path | None, json: bool) -> None:
    """Print what the bytes of an image are, and draw it if asked so."""
    with session(chosen, json_lines=json) as (console, store):
        store.sweep()
        made = pipeline.plan_image(image, chosen)
        releasing.tell_misfits(chosen.dist, console)
        stages = pipeline.stages_of(made, pipeline.build_context(chosen, store))
        bake = pipeline.the_stage(stages, BakeStage)
        show_size(bake, load_spec(chosen.spec), chosen.dist, console, version=version, output=output)
