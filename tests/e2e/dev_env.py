"""What the end-to-end tests of dev-env need: k3s or its stand-in, a machine that runs, and ways into it."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paramiko
import pytest
import zstandard

from tests.k3s_stand_in import VERSION, build
from tests.sandbox import Done, Sandbox
from tests.tools import image_archive, pinned_tools
from vmimage.access.known_hosts import host_name, known_keys
from vmimage.vm.ssh import connect

REAL = os.environ.get("VMIMAGE_TEST_REAL_K3S", "")
K3S = (REAL and os.environ.get("VMIMAGE_TEST_K3S_VERSION")) or VERSION
# The real k3s takes ten minutes to be ready where it is emulated on two cores, and pods take one to start.
BOOT_SECONDS = 3000.0 if REAL else 420.0
BUILD_SECONDS = 4 * 3600 if REAL else 2400
COMMAND_SECONDS = 600 if REAL else 180


def stand_in_mirror(folder: Path) -> dict[str, str]:
    """Fill a mirror with the stand-in and an archive of two images; returns the digests of the pins."""
    folder.mkdir()
    # Without pause, no new pod starts; of the other, nothing does.
    archive = image_archive({"docker.io/rancher/mirrored-pause:3.6": [], "docker.io/rancher/stand-in:1": []})
    images = zstandard.compress(archive)
    (folder / f"k3s-airgap-images-{VERSION}-amd64").write_bytes(images)
    return {"k3s": build(folder / f"k3s-{VERSION}-amd64"), "k3s-airgap-images": hashlib.sha256(images).hexdigest()}


def mirrored_digests(mirror: str, version: str) -> dict[str, str]:
    """Return the digests of k3s's files in a mirror, whatever they are."""
    found = {}
    for pin in ("k3s", "k3s-airgap-images"):
        name = f"{pin}-{version}-amd64"
        digest = hashlib.sha256()
        url = f"{mirror.rstrip('/')}/{urllib.parse.quote(name)}" if "://" in mirror else (Path(mirror) / name).as_uri()
        with urllib.request.urlopen(url, timeout=60) as file:  # noqa: S310 - what the tester named
            while data := file.read(1 << 20):
                digest.update(data)
        found[pin] = digest.hexdigest()
    return found


def with_k3s(text: str, version: str, digests: dict[str, str]) -> str:
    """Return images.yaml with other pins of k3s."""
    for pin, digest in digests.items():
        pattern = rf"(\n  {pin}:\n    version: )\S+(\n.*?amd64: )[0-9a-f]{{64}}"
        text, changed = re.subn(pattern, rf"\g<1>{version}\g<2>{digest}", text, count=1, flags=re.DOTALL)
        assert changed
    return text


@dataclass(frozen=True)
class Running:
    """A machine that `invoke run` started."""

    place: Sandbox
    ports: dict[str, int]
    key: Path
    kubeconfig: Path

    def log_in(self) -> list[str]:
        """Return the options with which `invoke` commands log in."""
        return [f"--ssh-port={self.ports['ssh']}", f"--ssh-key={self.key}"]

    def known(self) -> dict[str, str]:
        """Return its host keys, as far as the place knows them."""
        name = host_name("127.0.0.1", self.ports["ssh"])
        keys = known_keys(self.place.state / "known_hosts", name)
        return {key.get_name(): key.get_base64() for key in keys}

    def guest(self, command: str) -> Done:
        """Run a command in the machine."""
        with connect(self.ports["ssh"], "dev", self.key) as client:
            _, stdout, stderr = client.exec_command(command, timeout=BOOT_SECONDS)
            out, err = stdout.read().decode(), stderr.read().decode()
            return Done(stdout.channel.recv_exit_status(), out, err)

    def said(self, command: str) -> str:
        """Run a command in the machine that works; returns its output."""
        done = self.guest(command)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def put(self, file: Path, to: str) -> None:
        """Copy a file into the machine by sftp."""
        with connect(self.ports["ssh"], "dev", self.key) as client, client.open_sftp() as sftp:
            sftp.put(str(file), to)

    def page(self, host: str) -> str:
        """Return what the host gets at http://HOST:PORT/."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["http"], timeout=10)
        try:
            connection.request("GET", "/", headers={"Host": f"{host}:{self.ports['http']}"})
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            return str(error)
        finally:
            connection.close()


def until(done: Callable[[], bool], *, seen: Callable[[], object] = lambda: "") -> None:
    """Wait until something is true; `seen` tells what there is instead."""
    end = time.monotonic() + BOOT_SECONDS
    while not done():
        assert time.monotonic() < end, f"not within {BOOT_SECONDS:.0f} s: {seen()}"
        time.sleep(0.5)


def answers(running: Running, process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, process.stderr and process.stderr.read()
    try:
        return running.guest("true").returncode == 0
    except (OSError, EOFError, paramiko.SSHException):
        return False


def kubectl(machine: Running, folder: Path, *arguments: str) -> str:
    """Run the host's real kubectl, in the machine's context."""
    argv = [str(pinned_tools(folder) / "kubectl"), "--kubeconfig", str(machine.kubeconfig), "--context=dev-env"]
    done = subprocess.run([*argv, *arguments], capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def shared(machine: Running, folder: Path, *options: str) -> Iterator[Callable[[str], None]]:
    """Share a directory; yields what waits until `invoke share` has said something."""
    process = machine.place.start("share", str(folder), *options, *machine.log_in())
    assert process.stdout
    assert process.stderr
    lines = process.stdout

    def said(text: str) -> None:
        watchdog = threading.Timer(BOOT_SECONDS, process.kill)
        watchdog.start()
        try:
            if not any(text in line for line in lines):
                pytest.fail(f"it never said {text!r}: {process.stderr and process.stderr.read()}")
        finally:
            watchdog.cancel()

    try:
        with process.stdout, process.stderr:
            said("Ctrl-C ")
            yield said
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()


def served(machine: Running, text: str, host: str = "frontend.localhost") -> None:
    """Wait until the host gets a page."""
    until(lambda: machine.page(host) == text, seen=lambda: machine.page(host))
