"""`invoke bench sync`: the ways of `invoke share` side by side, in one machine.

Both are given the same tree of this host, one after the other. Machines are noisy: read the ratios, not the seconds.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import paramiko

from vmimage import PROJECT
from vmimage.util.console import Console
from vmimage.util.errors import BuildError
from vmimage.vm.forwards import FORWARDS
from vmimage.vm.ssh import connect, make_key

WAYS: Mapping[str, Sequence[str]] = {"mounted": ("--notify",), "copied": ("--sync",)}
FOLDERS, FILES_EACH, FILE_BYTES, LARGE_BYTES = 50, 100, 1024, 64 << 20
ROUNDS, EVENTS = 3, 10
BOOT_SECONDS, SHARE_SECONDS = 600.0, 900.0
LOOK, READ, LARGE, GIT, EVENT, START = (
    "look at each file (lstat)",
    "read 5,000 files of 1 KiB",
    "read a file of 64 MiB",
    "git status",
    "from save to event",
    "until it can be used",
)
# In the guest: seconds that each takes, as JSON.
MEASURE = """
import json, os, shutil, subprocess, sys, time
top, found = sys.argv[1], {}
def measured(name, work):
    began = time.perf_counter()
    work()
    found[name] = time.perf_counter() - began
def files():
    return [os.path.join(at, name) for at, _, names in os.walk(os.path.join(top, "small")) for name in names]
def read(path):
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass
measured("look", lambda: [os.lstat(path) for path in files()])
measured("read", lambda: [read(path) for path in files()])
measured("large", lambda: read(os.path.join(top, "large")))
if shutil.which("git") and os.path.isdir(os.path.join(top, ".git")):
    measured("git", lambda: subprocess.run(["git", "-C", top, "status", "--porcelain"], stdout=-3, check=True))
print(json.dumps(found))
"""
# In the guest: prints the name of each file of a directory that was written, as inotify tells it.
WATCH = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
libc.inotify_add_watch(fd, os.fsencode(sys.argv[1]), 0x8)  # IN_CLOSE_WRITE
print("watching", flush=True)
while data := os.read(fd, 65536):
    while data:
        (size,) = struct.unpack_from("I", data, 12)
        print(data[16 : 16 + size].rstrip(b"\\0").decode(), flush=True)
        data = data[16 + size :]
"""


@dataclass(frozen=True)
class Machine:
    """A machine that runs, and how to log in to it."""

    port: int
    key: Path
    state: Path

    def run(self, program: str, *arguments: str) -> str:
        """Run a Python program in it; returns what it prints."""
        with connect(self.port, "dev", self.key) as client:
            _, out, errors = client.exec_command(shlex.join(["python3", "-c", program, *arguments]))
            said, failed = out.read().decode(), errors.read().decode()
        if out.channel.recv_exit_status():
            raise BuildError(f"the machine says: {failed}")
        return said


def bench_sync(image: str, console: Console) -> None:
    """Start an image, measure, and tell.

    Raises:
        BuildError: The machine did not answer, or a share did not begin.
    """
    with tempfile.TemporaryDirectory() as folder, _machine(image, Path(folder), console) as machine:
        tree = Path(folder) / "tree"
        make_tree(tree)
        found = {way: _measured(machine, way, tree, console) for way in WAYS}
    for name in (START, LOOK, READ, LARGE, GIT, EVENT):
        mounted, copied = (found[way].get(name) for way in WAYS)
        if mounted is None or copied is None:
            console.say(f"{name}: not measured, since the machine has no git")
            continue
        ratio = f"{mounted / copied:.1f} times as quick"
        console.event("figure", name=name, mounted=mounted, copied=copied)
        console.say(f"{name}: {mounted:.3f} s mounted, {copied:.3f} s copied: {ratio}")


def make_tree(tree: Path) -> None:
    """Write the files that are shared."""
    for folder in range(FOLDERS):
        (tree / "small" / str(folder)).mkdir(parents=True)
        for name in range(FILES_EACH):
            (tree / "small" / str(folder) / str(name)).write_bytes(os.urandom(FILE_BYTES // 2).hex().encode())
    (tree / "large").write_bytes(os.urandom(1 << 20) * (LARGE_BYTES >> 20))
    for argv in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tree), *argv], check=False, capture_output=True)  # noqa: S607


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def _machine(image: str, folder: Path, console: Console) -> Iterator[Machine]:
    key, ports = make_key(folder), _free_ports(len(FORWARDS))
    (folder / "key.pub").write_text(key.public + "\n")
    options = [f"--{name}-port={port}" for name, port in zip(FORWARDS, ports, strict=True)]
    machine = Machine(ports[list(FORWARDS).index("ssh")], key.private, folder / "state")
    with console.stage("boot", image) as step:
        command = ["run", image, f"--ssh-key={folder}/key.pub", *options]
        with _started(machine, command, "Ctrl-C", BOOT_SECONDS):
            end = time.monotonic() + BOOT_SECONDS
            while not _answers(machine):
                if time.monotonic() > end:
                    raise BuildError(f"the machine did not answer within {BOOT_SECONDS:.0f} s")
                time.sleep(1)
            step.outcome = "answers"
            yield machine


def _answers(machine: Machine) -> bool:
    try:
        return machine.run("print(1)") == "1\n" and (machine.state / "known_hosts").exists()
    except (OSError, EOFError, paramiko.SSHException, BuildError):
        return False


def _measured(machine: Machine, way: str, tree: Path, console: Console) -> dict[str, float]:
    target = f"/home/dev/{way}"
    command = ["share", str(tree), target, *WAYS[way], f"--ssh-port={machine.port}", f"--ssh-key={machine.key}"]
    with console.stage("share", way) as step:
        began = time.monotonic()
        with _started(machine, command, "Ctrl-C", SHARE_SECONDS):
            found = {START: time.monotonic() - began}
            rounds = [json.loads(machine.run(MEASURE, target)) for _ in range(ROUNDS)]
            for key, name in {"look": LOOK, "read": READ, "large": LARGE, "git": GIT}.items():
                if key in rounds[0]:
                    found[name] = median(each[key] for each in rounds)
            found[EVENT] = median(_events(machine, target, tree))
        step.outcome = f"{len(found)} figures"
    return found


def _events(machine: Machine, target: str, tree: Path) -> Iterator[float]:
    with connect(machine.port, "dev", machine.key) as client:
        _, out, _ = client.exec_command(shlex.join(["python3", "-c", WATCH, f"{target}/small/0"]))
        out.readline()
        for number in range(EVENTS):
            time.sleep(1)
            began = time.monotonic()
            (tree / "small" / "0" / "0").write_text(f"changed {number}\n")
            out.readline()
            yield time.monotonic() - began


@contextmanager
def _started(machine: Machine, command: Sequence[str], text: str, seconds: float) -> Iterator[None]:
    """Run one of our commands for the length of a `with` block, from when it says something."""
    argv = [sys.executable, "-m", "invoke", *command]
    environment = {**os.environ, "VMIMAGE_STATE": str(machine.state)}
    with subprocess.Popen(argv, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + seconds
            for line in process.stdout or ():
                if text in line:
                    break
                if time.monotonic() > end:
                    raise BuildError(f"`invoke {command[0]}` did not begin within {seconds:.0f} s")
            else:
                raise BuildError(f"`invoke {command[0]}` ended")
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
