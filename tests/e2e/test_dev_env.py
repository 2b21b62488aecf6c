"""dev-env, built with the tests' stand-in for k3s, which comes from a mirror as the real one would.

With the mirror of the real files (VMIMAGE_TEST_REAL_K3S names it), the same with the real k3s; of another version than
the pinned one if VMIMAGE_TEST_K3S_VERSION says so.
The tests after the build share one machine, which boots twice: they run in the order of this file.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shlex
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

from tests.k3s_stand_in import NEWER, VERSION, build
from tests.sandbox import Done, Sandbox, copy_project
from tests.tools import free_port, image_archive, pinned_tools, update_bundle
from vmimage import PROJECT
from vmimage.access.known_hosts import host_name, known_keys
from vmimage.vm.forwards import FORWARDS
from vmimage.vm.ssh import connect, make_key

REAL = os.environ.get("VMIMAGE_TEST_REAL_K3S", "")
K3S = (REAL and os.environ.get("VMIMAGE_TEST_K3S_VERSION")) or VERSION
# The real k3s takes ten minutes to be ready where it is emulated on two cores, and pods take one to start.
BOOT_SECONDS = 3000.0 if REAL else 420.0
BUILD_SECONDS = 4 * 3600 if REAL else 1500
COMMAND_SECONDS = 600 if REAL else 60
HELLO = "/usr/local/share/dev-env/charts/hello"
USER_DATA = "#cloud-config\nwrite_files: [{path: /etc/from-user-data, content: here}]\n"
# Prints the names of files in /home/dev/src of which inotify tells, until it is ended.
EVENTS = """
import ctypes, os, struct
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
libc.inotify_add_watch(fd, b"/home/dev/src", 0x8)  # IN_CLOSE_WRITE
print("watching", flush=True)
while data := os.read(fd, 4096):
    (size,) = struct.unpack_from("I", data, 12)
    print(data[16 : 16 + size].rstrip(b"\\0").decode(), flush=True)
"""


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


@pytest.fixture(scope="module")
def place(sandbox: Sandbox, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A copy of the project that pins the stand-in, and exports a qcow2 only."""
    folder = tmp_path_factory.mktemp("dev-env")
    copy_project(PROJECT, folder / "project")
    images = folder / "project" / "images.yaml"
    text = re.sub(r"(\n  dev-env:.*?\n      qcow2: .*?\n)      ova: .*?\n", r"\1", images.read_text(), flags=re.DOTALL)
    mirror = REAL or str(folder / "mirror")
    if not REAL:
        text = with_k3s(text, VERSION, stand_in_mirror(folder / "mirror"))
    elif K3S != VERSION:
        text = with_k3s(text, K3S, mirrored_digests(REAL, K3S))
    images.write_text(text)
    return Sandbox(folder / "project", sandbox.cache, sandbox.dist, {"https_proxy": "", "VMIMAGE_MIRROR": mirror})


@pytest.fixture(scope="module")
def dev_env(place: Sandbox) -> Done:
    """The build; it comes after toolbox's, whose base it shares."""
    return place.invoke("build-image", "dev-env", "--json", timeout=BUILD_SECONDS)


def test_dev_env_is_built_verified_and_released(dev_env: Done) -> None:
    assert dev_env.returncode == 0, dev_env.stderr
    release = Path(dev_env.event("result")["release"])
    manifest = json.loads((release / "manifest.json").read_text())
    assert set(manifest["files"]) == {"qcow2"}
    assert manifest["pins"]["k3s"]["version"] == K3S
    checks = {check["name"]: check for check in manifest["verdict"]["checks"]}
    assert set(checks) == {"disk", "qcow2-virtio-uefi", "qcow2-virtio-bios"}
    # What the stand-in does not do is skipped with it, and nothing else.
    assert sum(check["skipped"] for check in checks.values()) == (0 if REAL else 2)
    outcomes = {seen["stage"]: seen["outcome"] for seen in dev_env.events if seen["event"] == "end"}
    assert outcomes["base"] == "unchanged, from the cache"


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


@pytest.fixture(scope="module")
def machine(dev_env: Done, place: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A machine with a seed of `invoke seed`, and a disk that keeps changes."""
    assert dev_env.returncode == 0, dev_env.stderr
    folder = tmp_path_factory.mktemp("machine")
    key = make_key(folder)
    (folder / "key.pub").write_text(key.public + "\n")
    (folder / "user-data").write_text(USER_DATA)
    options = [f"--user-data={folder}/user-data", f"--output={folder}/seed.iso", "--hostname=desk"]
    made = place.invoke("seed", f"--ssh-key={folder}/key.pub", *options)
    assert made.returncode == 0, made.stderr
    ports = {name: free_port() for name in FORWARDS}
    options = [f"--{name}-port={port}" for name, port in ports.items()]
    process = place.start("run", "dev-env", f"--disk={folder}/disk.qcow2", f"--seed={folder}/seed.iso", *options)
    assert process.stdout
    assert process.stderr
    running = Running(place, ports, key.private, folder / "kubeconfig")
    with process.stdout, process.stderr:
        try:
            until(lambda: answers(running, process))
            until(lambda: bool(running.known()))
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            ended = process.wait(timeout=60)
    assert ended == 128 + signal.SIGTERM
    assert place.nothing_runs(), place.processes()
    assert not list((place.cache / "work").iterdir())


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


def test_seed_gives_the_machine_its_key_its_name_and_user_data(machine: Running) -> None:
    assert machine.said("hostname; cat /etc/from-user-data; echo; id -un") == "desk\nhere\ndev"


def test_kubectl_of_the_host_reaches_the_cluster_through_the_forwarded_port(machine: Running, tmp_path: Path) -> None:
    other = {"name": "other", "cluster": {"server": "https://192.0.2.1"}}
    machine.kubeconfig.write_text(json.dumps({"clusters": [other], "current-context": "other"}))
    machine.said("dev-env wait")
    options = [f"--kubeconfig={machine.kubeconfig}", f"--kubernetes-port={machine.ports['kubernetes']}"]
    done = machine.place.invoke("kubeconfig", *options, *machine.log_in(), timeout=COMMAND_SECONDS)
    assert done.returncode == 0, done.stderr
    assert kubectl(machine, tmp_path, "get", "nodes", "-o", "name") == "node/dev-env"
    assert kubectl(machine, tmp_path, "config", "current-context") == "other"
    assert "192.0.2.1" in kubectl(machine, tmp_path, "config", "view")


def test_its_console_told_its_host_keys_so_no_command_needs_them_from_its_user(machine: Running) -> None:
    has = [line.split()[:2] for line in machine.said("cat /etc/ssh/ssh_host_*_key.pub").splitlines()]
    assert machine.known().items() <= dict(has).items()
    assert "ssh-ed25519" in machine.known()
    machine.said("dev-env wait")
    for command in ("--show", "--show --host=localhost"):
        done = machine.place.invoke("kubeconfig", *command.split(), *machine.log_in(), timeout=COMMAND_SECONDS)
        assert done.returncode == 0, done.stderr


def test_another_key_than_that_of_its_console_is_refused(machine: Running) -> None:
    wrong = f"--host-key=SHA256:{'A' * 43}"
    done = machine.place.invoke("kubeconfig", "--show", wrong, *machine.log_in(), timeout=COMMAND_SECONDS)
    assert done.returncode == 2
    assert "another machine than that of --host-key answers" in done.stderr


@contextmanager
def shared(machine: Running, folder: Path, *options: str) -> Iterator[Callable[[str], None]]:
    """Share a directory; yields what waits until `invoke share` has said something."""
    process = machine.place.start("share", str(folder), *options, *machine.log_in())
    watchdog = threading.Timer(BOOT_SECONDS, process.kill)
    watchdog.start()
    assert process.stdout
    assert process.stderr
    lines = process.stdout

    def said(text: str) -> None:
        for line in lines:
            if text in line:
                return
        pytest.fail(f"it never said {text!r}")

    try:
        with process.stdout, process.stderr:
            said("Ctrl-C unmounts it")
            yield said
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Frontend:
    """The profile `frontend`, whose files are in a directory of this host."""

    page: Path
    said: Callable[[str], None]


@pytest.fixture(scope="module")
def frontend(machine: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A page of this host, shared until the end; its pod is there before."""
    folder = tmp_path_factory.mktemp("src")
    folder.chmod(0o777)
    page = folder / "index.html"
    page.write_text("first\n")
    machine.said("dev-env up frontend")
    with shared(machine, folder, "/home/dev/src", "--notify") as said:
        yield Frontend(page, said)


def served(machine: Running, text: str, host: str = "frontend.localhost") -> None:
    """Wait until the host gets a page."""
    until(lambda: machine.page(host) == text, seen=lambda: machine.page(host))


def test_what_is_shared_after_up_is_served_on_the_host_by_name(machine: Running, frontend: Frontend) -> None:
    served(machine, "first\n")
    assert "404" in machine.page("other.localhost")


def test_pod_cannot_write_to_what_is_shared_though_its_mount_came_later(machine: Running, frontend: Frontend) -> None:
    served(machine, "first\n")
    server = machine.said("pgrep --full --oldest 'nc -ll -p 8080'")
    inside = f"sudo nsenter --target {server} --mount --setuid 65532 --setgid 65532 /bin/busybox"
    assert machine.said(f"{inside} cat /www/index.html") == "first"
    for attempt in ("touch /www/new", "rm /www/index.html", "sh -c 'echo pod > /www/index.html'"):
        done = machine.guest(f"{inside} {attempt}")
        assert done.returncode != 0
        assert "ermission denied" in done.stderr
    assert [path.name for path in frontend.page.parent.iterdir()] == ["index.html"]
    assert frontend.page.read_text() == "first\n"


def test_share_that_ended_and_began_again_is_served(machine: Running, frontend: Frontend, tmp_path: Path) -> None:
    """The pod starts while a share is there: it holds that mount, which then dies."""
    values = {"charts": {"again": {"chart": HELLO, "values": {"directory": "/home/dev/again"}}}}
    machine.said(f"printf %s {shlex.quote(json.dumps(values))} > again.json")
    (tmp_path / "index.html").write_text("one\n")
    tmp_path.chmod(0o755)
    with shared(machine, tmp_path, "/home/dev/again"):
        machine.said("dev-env up frontend again.json")
        served(machine, "one\n", "again.localhost")
    (tmp_path / "index.html").write_text("two\n")
    with shared(machine, tmp_path, "/home/dev/again"):
        served(machine, "two\n", "again.localhost")
    machine.said("dev-env up frontend")


def test_edit_on_the_host_is_told_and_is_served_by_the_pod(machine: Running, frontend: Frontend) -> None:
    with connect(machine.ports["ssh"], "dev", machine.key) as client:
        _, events, _ = client.exec_command(f"timeout 60 python3 -c {shlex.quote(EVENTS)}")
        assert events.readline() == "watching\n"
        frontend.page.write_text("second\n")
        assert events.readline() == "index.html\n"
    served(machine, "second\n")


def test_shared_directory_is_used_from_both_sides_and_links_lead_nowhere(machine: Running, tmp_path: Path) -> None:
    ours = tmp_path / "my files"
    ours.mkdir()
    (ours / "from host").write_text("hello\n")
    (tmp_path / "secret").write_text("secret\n")
    (ours / "out").symlink_to(tmp_path / "secret")
    with shared(machine, ours):
        seen = "cat 'my files/from host'; stat -c %U 'my files/from host'; sudo ls 'my files'; cat 'my files/out'"
        done = machine.guest(seen)
        assert done.stdout == "hello\ndev\nfrom host\nout\n"
        assert "No such file" in done.stderr
        assert (
            machine.said("cd 'my files'; echo new > new; mv new 'from host'; mkdir -p a/b; df . | tail -1 | wc -l")
            == "1"
        )
        assert (ours / "from host").read_text() == "new\n"
        assert (ours / "a/b").is_dir()
    assert machine.said("findmnt '/home/dev/my files'; ls -A 'my files'; pgrep -cx sshfs") == "1", "the other share's"


def test_reboot_brings_the_share_and_the_same_cluster_back(
    machine: Running, frontend: Frontend, tmp_path: Path
) -> None:
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = machine.said(boot)
    machine.guest("sudo reboot")
    frontend.said("mounted again: /home/dev/src")
    assert machine.said(boot) != before
    frontend.page.write_text("after\n")
    until(lambda: machine.guest("cat /home/dev/src/index.html").stdout == "after\n")
    # `systemctl start` waits as long as the target does.
    machine.said("sudo systemctl start dev-env-ready.target && dev-env status | grep ^ready")
    # With the certificate of the authority that it had before.
    assert kubectl(machine, tmp_path, "get", "deployment", "frontend", "-o", "name") == "deployment.apps/frontend"
    served(machine, "after\n")


def update(machine: Running, folder: Path, version: str, *, comes_up: bool) -> Done:
    """Update the machine to a stand-in of another version."""
    build(folder / "k3s", version=version, comes_up=comes_up)
    file = update_bundle(folder / "update.tar", {"k3s": (folder / "k3s").read_bytes()}, version=version)
    machine.put(file, "update.tar")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    patience = "" if comes_up else "--timeout 5"
    return machine.guest(f"sudo dev-env update --from update.tar --sha256 {digest} {patience}")


@pytest.mark.skipif(bool(REAL), reason="the real k3s is not replaced by the stand-in")
def test_update_to_a_newer_stand_in(machine: Running, tmp_path: Path) -> None:
    done = update(machine, tmp_path, NEWER, comes_up=True)
    assert done.returncode == 0, done.stderr
    assert f"updated: k3s {NEWER}" in done.stdout
    assert json.loads(machine.said("dev-env version --json"))["k3s"] == NEWER
    assert machine.said("kubectl get nodes -o jsonpath='{.items[*].status.nodeInfo.kubeletVersion}'") == NEWER


def test_update_to_a_stand_in_that_does_not_come_up_is_taken_back(machine: Running, tmp_path: Path) -> None:
    before = machine.said("dev-env version; kubectl get deployments --all-namespaces -o name")
    done = update(machine, tmp_path, "v1.36.9+k3s1", comes_up=False)
    assert done.returncode == 1
    assert "all is as it was before: not ready after 5 s of waiting: " in done.stderr
    assert machine.said("dev-env version; kubectl get deployments --all-namespaces -o name") == before
    assert machine.said("sudo find /usr/local/bin /var/lib/rancher/k3s -name '*before-update*'") == ""
