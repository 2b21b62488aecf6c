"""`invoke run`: a released image in QEMU, with the user's key and ports on localhost."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vmimage import host
from vmimage.access.host_keys import host_keys_recorded
from vmimage.access.known_hosts import host_name, record
from vmimage.access.seed import existing_seed
from vmimage.cache.store import ROOM, Store
from vmimage.commands.kept_disk import Base, find_base, folder_of, make_kept, released_disk, require_base
from vmimage.commands.session import session
from vmimage.spec.load import load_spec
from vmimage.spec.model import port_range, size_bytes
from vmimage.stages.release.dist import Release, choose, tell_misfits
from vmimage.stages.release.version import LATEST
from vmimage.util.console import Console
from vmimage.util.errors import BuildError, InputError
from vmimage.util.files import expanded, fullness_told, home, read_regular
from vmimage.util.firmware import FirmwareName
from vmimage.util.ports import is_taken, ranges, require_free
from vmimage.util.settings import Options
from vmimage.vm.accelerator import find_accelerator, machine_cpus
from vmimage.vm.forwards import FORWARDS
from vmimage.vm.limits import KEY_BYTES
from vmimage.vm.machine import Hardware, make_overlay, start, write_seed
from vmimage.vm.profiles import HYPERVISORS, PROFILES

MOST_FURTHER = 512
"""Ports: QEMU takes a file descriptor for each, and a process has a thousand."""
KEY_NAMES = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")


def machine_like(hypervisor: str, firmware: str) -> tuple[str, FirmwareName]:
    """Return the profile and the firmware that a user named.

    Raises:
        InputError: There is no such thing, or they do not go together.
    """
    if hypervisor not in HYPERVISORS:
        raise InputError(f"--as {hypervisor}: unknown", hint=f"one of {', '.join(HYPERVISORS)}")
    profile = PROFILES[HYPERVISORS[hypervisor]]
    for known in profile.firmwares:
        if known == firmware:
            return HYPERVISORS[hypervisor], known
    hint = f"one of {', '.join(profile.firmwares)}"
    raise InputError(f"--firmware {firmware}: not with --as {hypervisor}", hint=hint)


def find_public_keys(given: str | None, folder: Path) -> list[str]:
    """Return the public keys that may log in: the file given, else the user's own.

    Raises:
        InputError: There is none, or it is not a public key.
    """
    paths = [expanded(given, "--ssh-key")] if given else [folder / name for name in KEY_NAMES]
    keys = []
    for path in paths:
        if path.is_file():
            text = _public_key(path)
            if not text.startswith(("ssh-", "ecdsa-", "sk-")):
                raise InputError(f"{path} is not a public ssh key", hint="name the file that ends in .pub")
            keys.append(text)
    if not keys:
        raise InputError(
            f"there is no public ssh key at {' or '.join(map(str, paths))}",
            hint="make one with `ssh-keygen -t ed25519`, or name one with --ssh-key",
        )
    return keys


def _public_key(path: Path) -> str:
    try:
        return read_regular(path, KEY_BYTES, follow=True).decode(errors="replace").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a public ssh key: {error}", hint="name the file that ends in .pub") from error


def run_release(
    released: Release | Base,
    options: Options,
    store: Store,
    console: Console,
    *,
    profile: str,
    firmware: FirmwareName,
    ports: Mapping[str, int],
    public_keys: Sequence[str],
    disk: Path | None,
    seed: Path | None = None,
    isolated: bool = False,
) -> None:
    """Start a release and wait until it is shut down or Ctrl-C.

    Args:
        released: A release; or what `disk` stands on, if that is there already.
        ports: Name (see FORWARDS) -> port on localhost.
        public_keys: Who may log in; not needed with a seed.
        disk: Overlay that keeps changes; without one they are thrown away at the end.
        seed: A NoCloud disk; one with the keys is made when not given.
        isolated: The guest reaches nothing outside; else also services on this host's loopback, at 10.0.2.2.
    """
    host.require(("qemu-system-x86_64", "qemu-img"))
    accelerator = find_accelerator(store.root / "accelerator.json", options.accelerator)
    require_free(ports)
    machine_facts = released.machine
    further, skipped = further_ports(machine_facts.ports, ports)
    forwards = {FORWARDS[name].guest: port for name, port in ports.items()} | {port: port for port in further}
    with store.workspace("run") as work:
        overlay = take_overlay(released, disk, work)
        if not seed:
            seed = work / "seed.iso"
            instance_id = f"run-{secrets.token_hex(4)}"
            write_seed(seed, public_keys=public_keys, hostname=released.image, instance_id=instance_id)
        hardware = Hardware(
            profile=profile,
            firmware=firmware,
            accelerator=accelerator,
            cpus=machine_cpus(machine_facts.cpus, accelerator),
            memory=size_bytes(machine_facts.memory) >> 20,
            forwards=forwards,
            told=forwards,
            restrict=isolated,
            throwaway=disk is None,
        )
        name = host_name("127.0.0.1", ports["ssh"])
        # The machine that was at this port before is not this one.
        record(options.known_hosts, name, [])
        with (
            start(hardware, disk=overlay, seed=seed, folder=work) as machine,
            host_keys_recorded(machine.serial, options.known_hosts, name, console),
        ):
            what = {"image": released.image, "version": released.version}
            if isinstance(released, Release):
                what["release"] = str(released.path)
            console.event("run", **what, ports=dict(ports), skipped_ports=skipped, serial=str(machine.serial))
            console.say(f"{released.image} {released.version} is starting as {profile} ({firmware}, {accelerator}).")
            for line in _ways_in(ports, further, skipped, machine.serial, disk):
                console.say(line)
            try:
                if machine.wait(lambda why: console.warn(unwritten(overlay, why))):
                    said = (work / "qemu.log").read_text(errors="replace").strip()
                    raise BuildError(f"QEMU ended: {said}")
            except KeyboardInterrupt:
                console.say("stopped")


def unwritten(disk: Path, why: str) -> str:
    """Return what to tell when what a machine writes cannot be written on this host.

    Args:
        disk: The file that takes it.
        why: QEMU's reason, if it gives one.
    """
    return (
        f"what the machine writes cannot be written to {disk.parent}: {why or 'an I/O error'}\n"
        "  its programs are told of an I/O error, and its file systems may be read-only from now on.\n"
        f"  Make room on the disk with {disk.parent} (`df -h`), then restart the machine: `sudo reboot` in it"
    )


def further_ports(wanted: str | None, ports: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Return those ports of a machine's own range that are forwarded, and those that are not.

    Args:
        wanted: FIRST-LAST, under the same numbers on localhost.
        ports: Those that are forwarded already.
    """
    mine = {*ports.values(), *(FORWARDS[name].guest for name in ports)}
    known = port_range(wanted)
    free = [port for port in known[:MOST_FURTHER] if port not in mine and not is_taken(port)]
    return free, [port for port in known if port not in set(free)]


def take_overlay(released: Release | Base, disk: Path | None, work: Path) -> Path:
    """Return the file that takes what the machine writes; made if it is not there.

    Args:
        disk: One that keeps it; else it is in `work`.

    Raises:
        VerifyError: The release's file or the base of the disk has other bytes than before, or is refused.
        HostError: It cannot be unpacked here, since the disk is full for instance.
    """
    if isinstance(released, Base):
        assert disk  # noqa: S101 - it is what stands on the base
        require_base(disk, released)
        return disk
    if disk:
        with fullness_told(disk.parent, "make room there, or name a --disk on a larger disk"):
            make_kept(released, disk)
        return disk
    with fullness_told(work, ROOM):
        opened = released_disk(released, work)
        make_overlay(opened.path.resolve(), opened.format, work / "overlay.qcow2")
    return work / "overlay.qcow2"


def _ways_in(
    ports: Mapping[str, int], further: Sequence[int], skipped: Sequence[int], serial: Path, disk: Path | None
) -> Iterator[str]:
    """Yield lines that tell people how to reach a machine, and how it ends."""
    yield f"  ssh -p {ports['ssh']} dev@localhost        (answers within a minute or two)"
    yield f"  http://localhost:{ports['http']}  https://localhost:{ports['https']}  ports 80 and 443 of the guest"
    yield f"  https://localhost:{ports['kubernetes']}  Kubernetes, if the image has it"
    if further:
        yield f"  localhost:{ranges(further)}  further TCP ports, for services of the machine"
    if skipped:
        yield f"  not forwarded, since they are in use on localhost or too many: {ranges(skipped)}"
    yield f"  its console: tail -f {serial}"
    thrown = "thrown away at the end (--disk FILE keeps them)"
    yield f"  changes are {f'kept in {disk}, which stands on {folder_of(disk)}' if disk else thrown}"
    yield "Ctrl-C, or `sudo poweroff` inside, ends it."


def _standing(disk: Path | None, image: str | None, version: str | None) -> Base | None:
    """Return the base of a kept disk, whatever was released since; None if the disk does not exist yet.

    Args:
        image: The image that the user named, if any.
        version: The version that the user named, if any.

    Raises:
        InputError: The disk stands on another image or version, or is not ours.
    """
    base = find_base(disk) if disk else None
    if base and (image not in (None, base.image) or version not in (None, LATEST, base.version)):
        raise InputError(
            f"{disk} stands on {base.image} {base.version}, and no other can take its place",
            hint=f"invoke run {base.image} --disk {disk}; or name a new file",
        )
    return base


def run_image(
    image: str | None,
    version: str | None,
    chosen: Options,
    *,
    like: str,
    firmware: str,
    ports: Sequence[int],
    ssh_key: str | None,
    disk: str | None,
    seed: str | None,
    isolated: bool = False,
) -> None:
    """Start a release, and wait for its end.

    Args:
        image: The default one when not given; of `version`, the latest.
        like: The hypervisor whose hardware it is given.
        ports: On localhost, in the order of FORWARDS.
        ssh_key: A file with the public key that may log in; the user's own when not given.
        disk: A file that keeps changes.
        seed: What `invoke seed` wrote.
        isolated: The guest reaches nothing outside.
    """
    with session(chosen) as (console, store):
        store.sweep()
        profile, kind = machine_like(like, firmware)
        name, _image = load_spec(chosen.spec).image(image)
        kept = expanded(disk, "--disk").absolute() if disk else None
        tell_misfits(chosen.dist, console)
        run_release(
            _standing(kept, image, version) or choose(chosen.dist, name, version),
            chosen,
            store,
            console,
            profile=profile,
            firmware=kind,
            ports=dict(zip(FORWARDS, ports, strict=True)),
            public_keys=[] if seed else find_public_keys(ssh_key, home() / ".ssh"),
            disk=kept,
            seed=existing_seed(seed) if seed else None,
            isolated=isolated,
        )
