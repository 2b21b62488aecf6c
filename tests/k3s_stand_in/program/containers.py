"""Containers: what a pod says of one, as a process that runs in the pod's network."""

from __future__ import annotations

import base64
import pkgutil
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.k3s_stand_in.program.images import Image, Images, full
from tests.k3s_stand_in.program.network import DNS, NAMESPACES, Sandbox
from tests.k3s_stand_in.program.objects import Object, Objects, now

PROPAGATION = {"None": "private", "HostToContainer": "slave", "Bidirectional": "shared"}
LONGEST_PAUSE = 20.0
SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NotYet(Exception):  # noqa: N818 - the kubelet tries again
    """A container cannot be made now."""


@dataclass
class Container:
    """A container of a pod, from its first start on."""

    name: str
    image: Image
    argv: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    restarts: int = -1
    started: str = ""
    _again: float = field(default=0.0, repr=False)

    def keep_running(self, policy: str) -> None:
        """Start it, and start it again when it has ended; after a pause, which grows."""
        code = self.exit_code
        if self.process and code is None:
            return
        if self.process and (policy == "Never" or (policy == "OnFailure" and code == 0)):
            return
        if self.process and not self._again:
            self._again = time.monotonic() + min(2.0**self.restarts, LONGEST_PAUSE)
        if time.monotonic() < self._again:
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.restarts, self.started, self._again = self.restarts + 1, now(), 0.0

    @property
    def exit_code(self) -> int | None:
        """What it ended with, if it has."""
        return self.process.poll() if self.process else None


class Runtime:
    """Makes containers, with their files in a folder of the agent."""

    def __init__(self, data: Path, images: Images) -> None:
        self.images = images
        self.pods = data / "agent" / "pods"
        # Under the name by which k3s-killall.sh finds what runs containers.
        self._shim = data / "data" / "stand-in" / "bin" / "containerd-shim-runc-v2"

    def start(self) -> None:
        """Make the shim; what an earlier run left is removed."""
        shutil.rmtree(self.pods, ignore_errors=True)
        self.pods.mkdir(parents=True)
        self._shim.parent.mkdir(parents=True, exist_ok=True)
        self._shim.write_bytes(pkgutil.get_data(__package__, "shim.sh") or b"")
        self._shim.chmod(0o755)

    def containers(self, objects: Objects, pod: Object, sandbox: Sandbox) -> list[Container]:
        """Return the containers of a pod whose images are here with layers.

        Raises:
            NotYet: Something that one mounts is not there, or its image is still being imported.
            OSError: A folder cannot be made.
        """
        folder = self.pods / pod["metadata"]["uid"]
        found = []
        for container in pod["spec"]["containers"]:
            name = container.get("image", "")
            image = self.images.find(name)
            if not image and full(name) in self.images.awaited:
                raise NotYet(f"image {name} is not there")
            if not image or not self.images.layers(image).is_dir():
                continue
            sources = volumes(objects, pod, folder / "volumes")
            root = folder / container["name"] / "root"
            root.parent.mkdir(parents=True)
            subprocess.run(["cp", "-a", str(self.images.layers(image)), str(root)], check=True)
            argv = ["/bin/sh", str(self._shim), str(NAMESPACES / sandbox.namespace), str(root), access(container)]
            argv += [*mounts(container, sources, root), "--", *command(pod, container, image, root)]
            write_names(pod, sandbox, root)
            found.append(Container(container["name"], image, argv, folder / f"{container['name']}.log"))
        return found

    def remove(self, pod: Object) -> None:
        """Remove the files of a pod."""
        shutil.rmtree(self.pods / pod["metadata"]["uid"], ignore_errors=True)


def access(container: Object) -> str:
    """Return whether a container may write to its root."""
    return "ro" if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") else "rw"


def command(pod: Object, container: Object, image: Image, root: Path) -> list[str]:
    """Return what runs a container's program in its root, as its user, with its environment and no other."""
    entry, arguments = image.config.get("Entrypoint") or [], image.config.get("Cmd") or []
    if container.get("command"):
        entry, arguments = container["command"], []
    if container.get("args"):
        arguments = container["args"]
    own = [f"{each['name']}={each.get('value', '')}" for each in container.get("env") or []]
    environment = [f"PATH={SAFE_PATH}", *(image.config.get("Env") or []), *own]
    context = {**(pod["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}
    user = []
    if context.get("runAsUser"):
        user = [f"--userspec={context['runAsUser']}:{context.get('runAsGroup', 0)}", "--groups="]
    return ["/usr/bin/env", "-i", *environment, "/usr/sbin/chroot", *user, str(root), *entry, *arguments]


def mounts(container: Object, sources: dict[str, Path], root: Path) -> list[str]:
    """Return the shim's words for a container's mounts, after making the places in its root."""
    words: list[str] = []
    for mount in container.get("volumeMounts") or []:
        source = sources[mount["name"]] / mount.get("subPath", "")
        target = root / mount["mountPath"].lstrip("/")
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        mode = "ro" if mount.get("readOnly") else "rw"
        if mount.get("recursiveReadOnly", "Disabled") != "Disabled":
            mode = "rro"
        words += [str(source), mount["mountPath"], PROPAGATION[mount.get("mountPropagation", "None")], mode]
    for name in ("null", "zero", "urandom"):
        (root / "dev").mkdir(exist_ok=True)
        (root / "dev" / name).touch()
        words += [f"/dev/{name}", f"/dev/{name}", "private", "rw"]
    return words


def volumes(objects: Objects, pod: Object, folder: Path) -> dict[str, Path]:
    """Return where the volumes of a pod are, after making those that are not there yet.

    Raises:
        NotYet: One is of something that is not there.
    """
    found = {}
    for volume in pod["spec"].get("volumes") or []:
        name, source = volume["name"], folder / volume["name"]
        if "hostPath" in volume:
            source = Path(volume["hostPath"]["path"])
            kind = volume["hostPath"].get("type", "")
            if kind == "DirectoryOrCreate":
                source.mkdir(parents=True, exist_ok=True)
            if not source.exists() or (kind == "Directory" and not source.is_dir()):
                raise NotYet(f"hostPath type check failed: {source} is not a directory")
        elif not source.exists():
            source.mkdir(parents=True)
            for file, data in contents(objects, pod["metadata"]["namespace"], volume).items():
                (source / file).write_bytes(data)
            source.chmod(0o777 if "emptyDir" in volume else 0o755)
        found[name] = source
    return found


def contents(objects: Objects, namespace: str, volume: Object) -> dict[str, bytes]:
    """Return the files of a volume that is a ConfigMap or a Secret.

    Raises:
        NotYet: That is not there.
    """
    for kind, word in (("configMap", "name"), ("secret", "secretName")):
        if kind in volume:
            key = (f"{kind.lower()}s", namespace, volume[kind][word])
            if key not in objects.objects:
                raise NotYet(f'{kind.lower()} "{key[2]}" not found')
            data: dict[str, str] = objects.get(key).get("data") or {}
            return {
                name: text.encode() if kind == "configMap" else base64.b64decode(text) for name, text in data.items()
            }
    return {}


def write_names(pod: Object, sandbox: Sandbox, root: Path) -> None:
    """Write the files by which programs find names, as the kubelet does."""
    meta = pod["metadata"]
    domains = " ".join(f"{each}cluster.local" for each in (f"{meta['namespace']}.svc.", "svc.", ""))
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc" / "resolv.conf").write_text(f"search {domains}\nnameserver {DNS}\noptions ndots:5\n")
    (root / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{sandbox.address} {meta['name']}\n")
