"""The part of a CNI plugin: a bridge, and for each pod a network namespace with one end of a veth pair in it.

Pods are reached through the bridge only. Sockets towards them are bound to it, so that no other route of the machine
can lead there, and a pod whose veth was taken out of the bridge is as lost as it would be with the real one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BRIDGE = "cni0"
GATEWAY = "10.42.0.1"
PODS = [f"10.42.0.{number}" for number in range(2, 255)]
SERVICES = "10.43.0.0/16"
DNS = "10.43.0.10"
NAMESPACES = Path("/run/netns")
PREFIX = "cni-"
CLONE_NEWNET = 0x40000000
CLOSED_PORT = 9
"""Nothing listens there in any pod: the kernel of a pod that is reached refuses, and of one that is not says nothing."""
PROBE_SECONDS = 2.0
End = tuple[str, int]


@dataclass(frozen=True)
class Sandbox:
    """The network of a pod."""

    namespace: str
    address: str


class NoNetwork:
    """No network at all: pods have addresses that lead nowhere, and count as reached. For the developer's machine."""

    real = False

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._next = 0

    def start(self) -> None:
        """Make what all pods share, after removing what an earlier run left."""

    def add(self) -> Sandbox:
        """Make the network of a new pod.

        Raises:
            OSError: It cannot be made.
        """
        return Sandbox("", self._address())

    def remove(self, sandbox: Sandbox) -> None:
        """Remove the network of a pod, with all that runs in it."""
        self._used.discard(sandbox.address)

    def answers(self, ends: Iterable[End]) -> Mapping[End, bool]:
        """Return which ends answered: True if they accepted, False if they refused; the others are missing."""
        return dict.fromkeys(ends, True)

    def _address(self) -> str:
        """Take a free address; in turn, since the machine remembers for a while which card had it before."""
        found = next((each for each in [*PODS[self._next :], *PODS[: self._next]] if each not in self._used), "")
        if not found:
            raise OSError(errno.EADDRNOTAVAIL, "no IP addresses available in range set")
        self._next = PODS.index(found) + 1
        self._used.add(found)
        return found


class Network(NoNetwork):
    """The bridge and what is in it."""

    real = True

    def start(self) -> None:
        """Make the bridge anew; what an earlier run left, with all that runs in it, is removed."""
        left = [path.name for path in NAMESPACES.glob(f"{PREFIX}*")]
        end_all(left, 0)
        ip([f"netns delete {name}" for name in left] + [f"link delete {BRIDGE}"], check=False)
        # As k3s does at its start.
        Path("/proc/sys/net/ipv4/conf/all/forwarding").write_text("1\n")
        self._make_bridge()

    def _make_bridge(self) -> None:
        # The second table is asked first: services are this machine's own, but for DNS, which is a pod's.
        ip([
            f"link add {BRIDGE} type bridge",
            f"address add {GATEWAY}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
            "link set lo up",
            f"route replace local {SERVICES} dev lo table local",
            f"route replace {DNS}/32 dev {BRIDGE} src {GATEWAY} table local",
        ])  # fmt: skip

    def add(self) -> Sandbox:
        """Make a namespace, and a veth pair between it and the bridge."""
        if BRIDGE not in [name for _, name in socket.if_nameindex()]:
            self._make_bridge()
        sandbox = Sandbox(f"{PREFIX}{secrets.token_hex(8)}", self._address())
        veth = f"veth{secrets.token_hex(4)}"
        try:
            ip([
                f"netns add {sandbox.namespace}",
                f"link add {veth} type veth peer name eth0 netns {sandbox.namespace}",
                f"link set {veth} master {BRIDGE} up",
            ])  # fmt: skip
            ip([
                "link set lo up",
                "link set eth0 up",
                f"address add {sandbox.address}/24 dev eth0",
                f"route add default via {GATEWAY}",
            ], sandbox.namespace)  # fmt: skip
        except OSError:
            self.remove(sandbox)
            raise
        return sandbox

    def remove(self, sandbox: Sandbox) -> None:
        """Remove a namespace: its veth goes with it."""
        end_all([sandbox.namespace], 0)
        ip(["link delete eth0"], sandbox.namespace, check=False)
        ip([f"netns delete {sandbox.namespace}"], check=False)
        super().remove(sandbox)

    def answers(self, ends: Iterable[End]) -> Mapping[End, bool]:
        """Connect to all at once, through the bridge."""
        found: dict[End, bool] = {}
        with selectors.DefaultSelector() as selector:
            for end in ends:
                probe = socket.socket()
                selector.register(probe, selectors.EVENT_WRITE, end)
                try:
                    through_bridge(probe)
                    probe.setblocking(False)
                    probe.connect_ex(end)
                except OSError:
                    selector.unregister(probe)
                    probe.close()
            until = time.monotonic() + PROBE_SECONDS
            while selector.get_map() and (left := until - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    assert isinstance(key.fileobj, socket.socket)
                    fault = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if fault in (0, errno.ECONNREFUSED):
                        found[key.data] = fault == 0
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
        return found


def network() -> NoNetwork:
    """Return the network that this run makes: none but for root, and none where it is not wanted."""
    return Network() if os.geteuid() == 0 and os.environ.get("STAND_IN_NETWORK") != "none" else NoNetwork()


def ip(commands: list[str], namespace: str = "", *, check: bool = True) -> None:
    """Run ip(8) once for many commands: in an emulated machine each start of a program takes its time.

    Raises:
        OSError: One failed; the later ones were not tried.
    """
    argv = ["ip", *(["-netns", namespace] if namespace else []), *([] if check else ["-force"]), "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(commands) + "\n", capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(errno.EIO, f"ip: {done.stderr.strip()}")


def through_bridge(way: socket.socket) -> None:
    """Let a socket use the bridge and nothing else."""
    way.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, BRIDGE.encode())


def connected(end: End, seconds: float) -> socket.socket:
    """Return a connection to a pod.

    Raises:
        OSError: It cannot be reached, or refuses.
    """
    way = socket.socket()
    try:
        way.settimeout(seconds)
        through_bridge(way)
        way.connect(end)
    except OSError:
        way.close()
        raise
    return way


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Let this thread, and no other, make its sockets in a network namespace: there they stay."""
    # os.setns came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(file: int) -> None:
        if libc.setns(file, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")

    with Path("/proc/thread-self/ns/net").open("rb") as before, (NAMESPACES / namespace).open("rb") as wanted:
        enter(wanted.fileno())
        try:
            yield
        finally:
            enter(before.fileno())


def processes(namespaces: Iterable[str]) -> list[int]:
    """Return what runs in network namespaces."""
    wanted = {((NAMESPACES / name).stat().st_dev, (NAMESPACES / name).stat().st_ino) for name in namespaces}
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/net") if wanted else []:
        try:
            status = path.stat()
        except OSError:
            continue  # it has ended
        if (status.st_dev, status.st_ino) in wanted:
            found.append(int(path.parts[2]))
    return found


def end_all(namespaces: list[str], grace: float) -> None:
    """End what runs in network namespaces: by SIGTERM, and after some seconds by SIGKILL."""
    there = [name for name in namespaces if (NAMESPACES / name).exists()]
    if grace:
        _signal(processes(there), signal.SIGTERM)
    until = time.monotonic() + grace
    while (left := processes(there)) and time.monotonic() < until + 5:
        if time.monotonic() >= until:
            _signal(left, signal.SIGKILL)
        time.sleep(0.05)


def _signal(numbers: list[int], number: signal.Signals) -> None:
    for each in numbers:
        try:
            os.kill(each, number)
        except ProcessLookupError:
            continue
