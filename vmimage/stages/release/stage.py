"""What a release says of how it was made: manifest.json."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from typing_extensions import override

from vmimage import PROJECT, host
from vmimage.cache.result import Result
from vmimage.plan import PinnedFile, Plan
from vmimage.spec.model import MachineSpec
from vmimage.stages.bake.stage import DISK
from vmimage.stages.base import DEBS, PACKAGES
from vmimage.stages.release.dist import (
    Release,
    find_release,
    is_of,
    latest_version,
    point_latest,
    publish_release,
    publishing,
    releases,
)
from vmimage.stages.release.manifest import Manifest
from vmimage.stages.release.mark import open_dist
from vmimage.stages.release.version import LATEST, free_version, version_of
from vmimage.stages.stage import Stage, StoredStage
from vmimage.stages.verify.stage import VerifyStage
from vmimage.util.console import Step
from vmimage.util.files import disk_use, fullness_told
from vmimage.util.run import run

GIT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class ReleaseStage(Stage):
    """A version folder in dist/, with files that passed.

    Attributes:
        image, arch, suite, summary, disk, machine, components: What the manifest says of the image.
        pins: The files that it was made with.
    """

    name = "release"
    edition = 1

    image: str
    arch: str
    suite: str
    summary: str
    disk: int
    machine: MachineSpec
    components: tuple[str, ...]
    pins: tuple[PinnedFile, ...]

    @property
    def verify(self) -> VerifyStage:
        """The stage that proved the files."""
        assert isinstance(self.after, VerifyStage)  # noqa: S101 - `release_stage` builds nothing else
        return self.after

    @property
    def chain(self) -> tuple[StoredStage, StoredStage, StoredStage, StoredStage]:
        """Base, bake, export and verify of this release."""
        export = self.verify.export
        bake = export.made_from
        base = bake.made_from if bake else None
        assert bake  # noqa: S101 - an export is made from a bake, and that from a base
        assert base  # noqa: S101
        return base, bake, export, self.verify

    @property
    def why(self) -> str:
        return str(self.context.dist)

    @property
    def _folder(self) -> Path:
        return self.context.dist / self.image

    @property
    def _new_version(self) -> str:
        """The version that a release made now gets; it is the same while `publishing` holds."""
        return free_version(self._folder, version_of(self.verify.export.key, self.context.today))

    @property
    def _newest(self) -> Manifest | None:
        """Of the releases of this image, the newest."""
        earlier = [found.manifest for found in releases(self.context.dist) if found.image == self.image]
        return earlier[-1] if earlier else None

    def find(self) -> Release | None:
        """Return the newest release of these files."""
        return find_release(self.context.dist, self.image, self.verify.export.key)

    @property
    def released(self) -> Release:
        """The release that was obtained before."""
        found = self.find()
        assert found  # noqa: S101 - releases are never removed by a build
        return found

    def is_there(self) -> bool:
        return self.find() is not None

    @override
    def make(self, work: Path, step: Step) -> Mapping[str, object]:
        """Fill a version folder; returns its manifest."""
        from vmimage.stages.release.contents import fill_release

        export = self.verify.export
        facts = manifest(self)
        step.now("list the software in it")
        sboms = self._sboms(datetime.fromisoformat(str(facts["released"])))
        vulnerabilities = self._pass_gate(sboms, step)
        return fill_release(
            work,
            image=self.image,
            arch=self.arch,
            version=self._new_version,
            export=export.result.path,
            files=export.exported,
            verdict={**self.verify.verdict, **vulnerabilities},
            manifest=facts,
            sboms=sboms,
            before=self._newest,
        )

    def _sboms(self, made: datetime) -> Mapping[str, str]:
        from vmimage.stages.release.sbom.documents import Subject
        from vmimage.stages.release.sbom.of_image import sboms_of_image

        subject = Subject(image=self.image, version=self._new_version, arch=self.arch, summary=self.summary, made=made)
        _, bake, *_ = self.chain
        store = self.context.store
        with store.workspace("sbom") as folder:
            return sboms_of_image(subject, bake.result.path / DISK, self.pins, store.file, folder)

    def _pass_gate(self, sboms: Mapping[str, str], step: Step) -> dict[str, object]:
        """Return what the verdict is to say of known vulnerabilities; nothing if nobody asks."""
        if not self.context.gate:
            return {}
        with self.context.store.workspace("gate") as folder:
            return {"vulnerabilities": self.context.gate(sboms[".cdx.json"], folder, step)}

    def obtain(self, step: Step, *, fresh: bool, check: bool) -> None:
        # One at a time: another build of the same image may release the same version.
        hint = "make room there, or set VMIMAGE_DIST to a folder on a larger disk"
        with fullness_told(self.context.dist, hint):
            open_dist(self.context.dist)
            with publishing(self._folder, on_wait=step.wait):
                step.outcome = self._released(step, fresh=fresh, check=check)

    def _released(self, step: Step, *, fresh: bool, check: bool) -> str:
        """Release the files if they are not; returns what to say of it."""
        done = self.find()
        # The same bytes are not released twice, whatever is done again: a release is never replaced.
        if done and is_of(done, self.verify.verdict, check=check or fresh):
            if self.context.gate:
                # What was good on the day of its release may be known to be bad today.
                self._pass_gate(self._sboms(datetime.now(UTC)), step)
            # A build that was killed, or one of other inputs, may have left it elsewhere.
            point_latest(done.path.parent, done.version)
            return f"{done.version} is released already"
        made = publish_release(self._folder, self._new_version, lambda work: self.make(work, step))
        if latest_version(self._folder) != made.version:
            return f"{made.path}; `{LATEST}` beside it is not our link, and stays as it is"
        return str(made.path)

    def planned(self) -> Iterator[tuple[str, str, str]]:
        done = self.find()
        yield self.name, "done" if done else "make", str(done.path if done else self._folder)


def release_stage(plan: Plan, verify: VerifyStage) -> ReleaseStage:
    """Return the release of an image."""
    return ReleaseStage(
        context=verify.context,
        after=verify,
        image=plan.name,
        arch=plan.base.arch,
        suite=plan.base.suite,
        summary=plan.image.summary,
        disk=plan.disk_bytes,
        machine=plan.image.machine,
        components=plan.image.components,
        pins=plan.files,
    )


def manifest(release: ReleaseStage) -> dict[str, object]:
    """Return what a release says of how it was made.

    `seconds` of a stage is what it took when it ran, even if its result came from the cache this time.
    """
    store, seconds = release.context.store, release.context.seconds
    fetched = sum(store.file(pin.sha256).stat().st_size for pin in release.pins)
    took: dict[str, dict[str, object]] = {
        "fetch": {"seconds": round(seconds.get("fetch", 0.0), 1), "peak_disk_bytes": fetched}
    }
    results = {stage.name: stage.result for stage in release.chain}
    for name, result in results.items():
        took[name] = {
            "key": result.key,
            "cached": name not in release.context.made,
            "seconds": result.meta["seconds"],
            "peak_disk_bytes": result.meta["peak_bytes"],
        }
    return {
        "summary": release.summary,
        "arch": release.arch,
        "suite": release.suite,
        "disk_bytes": release.disk,
        "machine": release.machine.model_dump(),
        "components": list(release.components),
        "released": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "pins": {pin.name: pin.facts for pin in release.pins},
        "packages": json.loads((results["base"].path / PACKAGES).read_text()),
        "debs": json.loads((results["base"].path / DEBS).read_text()),
        "tools": {**host.require(host.BUILD_TOOLS), "python": platform.python_version()},
        "host": {"system": platform.platform(), "cpus": os.cpu_count()},
        "build_key": results["bake"].meta["build_key"],
        "peak_disk_bytes": peak_disk_bytes(fetched, results.values()),
        "stages": took,
        # Of the verdict, the files stand in it and the checks beside it.
        "inputs": {stage.name: stage.inputs for stage in release.chain if stage.name != "verify"},
    }


def peak_disk_bytes(fetched: int, results: Iterable[Result]) -> int:
    """Return the most bytes that a build of these results has on the disk at any time, with all that it keeps."""
    peak = kept = fetched
    for result in results:
        used = result.meta["peak_bytes"]
        assert isinstance(used, int)  # noqa: S101 - written by the store
        peak = max(peak, kept + used)
        kept += disk_use(result.path)
    return peak


def git_state(project: Path = PROJECT) -> dict[str, object]:
    """Return the commit of the sources, and whether files differ from it; empty outside a git checkout."""
    if not shutil.which("git"):
        return {}
    # Variables may name another repository, or have git say more than it is asked.
    argv = ["env", *(f"--unset={name}" for name in os.environ if name.startswith("GIT_"))]
    # The checkout may belong to another user than the one who builds; git would then refuse to look at it.
    git = [*argv, "git", "-C", str(project), "-c", f"safe.directory={project}"]
    commit = run([*git, "rev-parse", "HEAD"], check=False, timeout=GIT_SECONDS)
    # A copy without its own repository may lie in another one, which knows nothing of it.
    ours = run([*git, "ls-files", "--error-unmatch", "--", "tasks.py"], check=False, timeout=GIT_SECONDS)
    if commit.returncode or ours.returncode or not re.fullmatch(r"[0-9a-f]{40,64}", commit.output.strip()):
        return {}
    changed = run([*git, "status", "--porcelain", "--", "."], check=False, timeout=GIT_SECONDS)
    return {"commit": commit.output.strip(), "changed": [] if changed.returncode else changed.output.splitlines()}
