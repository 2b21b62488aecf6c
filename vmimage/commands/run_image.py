"""`invoke run`: a released image in QEMU, with the user's key and ports on localhost."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vmimage import host
from vmimage.access.host_keys import host_keys_recorded
from vmimage.access.known_hosts import host_name, record
from vmimage.access.seed import existing_seed
from vmimage.cache.store import Store
from vmimage.commands.session import session
from vmimage.formats.all import open_disk
from vmimage.spec.load import load_spec
from vmimage.spec.model import port_range, size_bytes
from vmimage.stages.release.dist import Release, choose
from vmimage.stages.verify.subject import File, require_recorded
from vmimage.util.console import Console
from vmimage.util.errors import BuildError, InputError, VerifyError
from vmimage.util.firmware import FirmwareName
from vmimage.util.ports import require_free, taken
from vmimage.util.settings import Options, home
from vmimage.vm.accelerator import find_accelerator, machine_cpus
from vmimage.vm.forwards import FORWARDS
from vmimage.vm.machine import Hardware, make_overlay, start, write_seed
from vmimage.vm.profiles import HYPERVISORS, PROFILES

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
    paths = [Path(given).expanduser()] if given else [folder / name for name in KEY_NAMES]
    keys = []
    for path in paths:
        if path.is_file():
            text = path.read_text(errors="replace").strip()
            if not text.startswith(("ssh-", "ecdsa-", "sk-")):
                raise InputError(f"{path} is not a public ssh key", hint="name the file that ends in .pub")
            keys.append(text)
    if not keys:
        raise InputError(
            f"there is no public ssh key at {' or '.join(map(str, paths))}",
            hint="make one with `ssh-keygen -t ed25519`, or name one with --ssh-key",
        )
    return keys


def run_release(
    release: Release,
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
) -> None:
    """Start a release and wait until it is shut down or Ctrl-C.

    Args:
        ports: Name (see FORWARDS) -> port on localhost.
        public_keys: Who may log in; not needed with a seed.
        disk: Overlay that keeps changes; without one they are thrown away at the end.
        seed: A NoCloud disk; one with the keys is made when not given.
    """
    host.require(("qemu-system-x86_64", "qemu-img"))
    accelerator = find_accelerator(store.root / "accelerator.json", options.accelerator)
    require_free(ports)
    machine_facts = release.manifest["machine"]
    further = [port for port in port_range(machine_facts.get("ports")) if not taken({"": port})]
    with store.workspace("run") as work:
        overlay = _overlay(release, disk, work)
        if not seed:
            seed = work / "seed.iso"
            write_seed(seed, public_keys=public_keys, hostname=release.image, instance_id=f"run-{secrets.token_hex(4)}")
        hardware = Hardware(
            profile=profile,
            firmware=firmware,
            accelerator=accelerator,
            cpus=machine_cpus(machine_facts["cpus"], accelerator),
            memory=size_bytes(machine_facts["memory"]) >> 20,
            forwards={FORWARDS[name].guest: port for name, port in ports.items()} | {port: port for port in further},
            restrict=False,
            throwaway=disk is None,
        )
        name = host_name("127.0.0.1", ports["ssh"])
        # The machine that was at this port before is not this one.
        record(options.known_hosts, name, [])
        with (
            start(hardware, disk=overlay, seed=seed, folder=work) as machine,
            host_keys_recorded(machine.serial, options.known_hosts, name, console),
        ):
            console.event("run", release=str(release.path), ports=dict(ports), serial=str(machine.serial))
            console.say(f"{release.image} {release.version} is starting as {profile} ({firmware}, {accelerator}).")
            for line in _ways_in(ports, further, machine.serial, disk):
                console.say(line)
            try:
                if machine.wait():
                    said = (work / "qemu.log").read_text(errors="replace").strip()
                    raise BuildError(f"QEMU ended: {said}")
            except KeyboardInterrupt:
                console.say("stopped")


def _overlay(release: Release, disk: Path | None, work: Path) -> Path:
    """Return the file that takes what the machine writes; made if it is not there.

    Args:
        disk: One that keeps it; else it is in `work`.

    Raises:
        VerifyError: The release's file is not the one that was released, or is refused.
    """
    overlay = disk or work / "overlay.qcow2"
    kind = release.first_kind
    path = release.file(kind).resolve()
    require_recorded(File(kind=kind, path=path, recorded_sha256=str(release.manifest["files"][kind].get("sha256", ""))))
    if not overlay.exists():
        unpacked = disk.with_name(f"{disk.name}.base") if disk else work / "base"
        unpacked.mkdir(exist_ok=True)
        try:
            opened = open_disk(kind, path, unpacked)
        except ValueError as error:
            raise VerifyError(f"{path.name} is refused: {error}", hint="download or build it again") from error
        make_overlay(opened.path, opened.format, overlay)
    return overlay


def _ways_in(ports: Mapping[str, int], further: Sequence[int], serial: Path, disk: Path | None) -> Iterator[str]:
    """Yield lines that tell people how to reach a machine, and how it ends."""
    yield f"  ssh -p {ports['ssh']} dev@localhost        (answers within a minute or two)"
    yield f"  http://localhost:{ports['http']}  https://localhost:{ports['https']}  ports 80 and 443 of the guest"
    yield f"  https://localhost:{ports['kubernetes']}  Kubernetes, if the image has it"
    if further:
        yield f"  localhost:{further[0]} to {further[-1]}  further TCP ports, for services of the machine"
    yield f"  its console: tail -f {serial}"
    kept = f"kept in {disk}" if disk else "thrown away at the end (--disk FILE keeps them)"
    yield f"  changes are {kept}"
    yield "Ctrl-C, or `sudo poweroff` inside, ends it."


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
) -> None:
    """Start a release, and wait for its end.

    Args:
        image: The default one when not given; of `version`, the latest.
        like: The hypervisor whose hardware it is given.
        ports: On localhost, in the order of FORWARDS.
        ssh_key: A file with the public key that may log in; the user's own when not given.
        disk: A file that keeps changes.
        seed: What `invoke seed` wrote.
    """
    with session(chosen) as (console, store):
        profile, kind = machine_like(like, firmware)
        name, _image = load_spec(chosen.spec).image(image)
        run_release(
            choose(chosen.dist, name, version),
            chosen,
            store,
            console,
            profile=profile,
            firmware=kind,
            ports=dict(zip(FORWARDS, ports, strict=True)),
            public_keys=[] if seed else find_public_keys(ssh_key, home() / ".ssh"),
            disk=Path(disk).absolute() if disk else None,
            seed=existing_seed(seed) if seed else None,
        )
