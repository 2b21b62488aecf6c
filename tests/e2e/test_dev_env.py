"""dev-env, built with the tests' stand-in for k3s, which comes from a mirror as the real one would.

With the mirror of the real files (VMIMAGE_TEST_REAL_K3S names it), the same with the real k3s; of another version than
the pinned one if VMIMAGE_TEST_K3S_VERSION says so.
The tests after the build share one machine, which boots twice: they run in the order of this file.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import begin
from tests.e2e.dev_env import (
    BUILD_SECONDS,
    COMMAND_SECONDS,
    K3S,
    REAL,
    Running,
    answers,
    kubectl,
    mirrored_digests,
    served,
    shared,
    stand_in_mirror,
    until,
    with_k3s,
)
from tests.k3s_stand_in import NEWER, NEWEST, VERSION, build
from tests.sandbox import Done, Sandbox, copy_project
from tests.tools import free_port, update_bundle
from vmimage import PROJECT
from vmimage.vm.forwards import FORWARDS
from vmimage.vm.ssh import connect, make_key

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
    assert set(checks) == {"disk", "clones", "qcow2-virtio-uefi", "qcow2-virtio-bios"}
    # What the stand-in does not do is skipped with it, and nothing else.
    assert sum(check["skipped"] for check in checks.values()) == (0 if REAL else 3)
    outcomes = {seen["stage"]: seen["outcome"] for seen in dev_env.events if seen["event"] == "end"}
    assert outcomes["base"] == "unchanged, from the cache"


@pytest.fixture(scope="module")
def machine(
    request: pytest.FixtureRequest, dev_env: Done, place: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A machine with a seed of `invoke seed`, and a disk that keeps changes."""
    assert dev_env.returncode == 0, dev_env.stderr
    if not REAL:
        # The real k3s needs each processor that there is: its probes would time out.
        begin(request, "by_itself")
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


def test_what_is_shared_after_up_is_served_on_the_host_by_name(machine: Running, frontend: Frontend) -> None:
    served(machine, "first\n")
    assert "404" in machine.page("other.localhost")


@pytest.mark.usefixtures("frontend")
def test_machine_names_the_ports_that_were_chosen_with_a_seed_of_the_users_own(machine: Running) -> None:
    assert f"http://frontend.localhost:{machine.ports['http']} " in machine.said("dev-env services")
    assert f"ports on your computer: {machine.ports['ssh']} ssh, " in machine.said("dev-env status")


def test_pod_cannot_write_to_what_is_shared_though_its_mount_came_later(machine: Running, frontend: Frontend) -> None:
    served(machine, "first\n")
    server = machine.said("pgrep --full --oldest 'nc -ll -p 8080'")
    inside = f"sudo nsenter --target {server} --mount --root --setuid 65532 --setgid 65532 /bin/busybox"
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
        _, events, _ = client.exec_command(f"timeout 180 python3 -c {shlex.quote(EVENTS)}")
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
        # In the guest, a link of the host leads nowhere, or to what is root's there, too.
        assert re.search("No such file|Permission denied", done.stderr)
        assert (
            machine.said("cd 'my files'; echo new > new; mv new 'from host'; mkdir -p a/b; df . | tail -1 | wc -l")
            == "1"
        )
        assert (ours / "from host").read_text() == "new\n"
        assert (ours / "a/b").is_dir()
    assert machine.said("findmnt '/home/dev/my files'; ls -A 'my files'; pgrep -cx sshfs") == "1", "the other share's"


def test_copied_directory_has_real_events_and_loses_nothing_of_the_machines(machine: Running, tmp_path: Path) -> None:
    ours = tmp_path / "copied"
    (ours / "out").mkdir(parents=True)
    (ours / "page").write_text("one\n")
    (ours / ".gitignore").write_text("out/\n")
    with shared(machine, ours, "--sync") as said:
        assert machine.said("cd copied; cat page; ls -A; findmnt . | wc -l") == "one\n.gitignore\npage\n0"
        machine.said("mkdir copied/out; touch copied/out/made-there")
        with connect(machine.ports["ssh"], "dev", machine.key) as client:
            watch = EVENTS.replace("/home/dev/src", "/home/dev/copied")
            _, events, _ = client.exec_command(f"timeout 180 python3 -c {shlex.quote(watch)}")
            assert events.readline() == "watching\n"
            (ours / "page").write_text("two\n")
            assert events.readline() == "page\n"
        assert machine.said("cat copied/page") == "two\n".strip()
        machine.said("echo theirs > copied/page")
        (ours / "page").write_text("three\n")
        said("page")
        assert machine.said("cat copied/page") == "theirs"
    assert machine.said("cat copied/page; ls copied/out") == "theirs\nmade-there"


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
    assert machine.guest("sudo journalctl -b -u k3s -o cat | grep -c 'Importing images'").stdout == "0\n"
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
    done = update(machine, tmp_path, NEWEST, comes_up=False)
    assert done.returncode == 1
    assert "all is as it was before: not ready after 5 s of waiting: " in done.stderr
    assert machine.said("dev-env version; kubectl get deployments --all-namespaces -o name") == before
    assert machine.said("sudo find /usr/local/bin /var/lib/rancher/k3s -name '*before-update*'") == ""
