"""Becomes another program, confined. It does not import the package, since it is started for each call (confine.py).

Arguments: `--rlimit NAME=NUMBER` …, `--writable FOLDER` …, `--namespaces`, and behind `--` the program.

In namespaces of its own the program has no network, not even a loopback, and all that is mounted is read-only but the
writable folders. Capabilities that could undo that are given up. Everything else of the host may still be read.

Source: unshare(2), mount_setattr(2), user_namespaces(7), capabilities(7).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18
MOUNT_ATTR_RDONLY, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 1, -100, 0x8000, 442
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
# Root reads and writes files of other users by these, in the host's own user namespace as in a new one.
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
LAST_CAP = 63
FAILED = 125

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def main(arguments: Sequence[str]) -> None:
    """Confine this process, and become the program."""
    at = arguments.index("--")
    options, program = list(arguments[:at]), list(arguments[at + 1 :])
    namespaces = "--namespaces" in options
    values = [options[i : i + 2] for i, name in enumerate(options) if name in ("--rlimit", "--writable")]
    # Python ignores it for itself. That it ignores SIGXFSZ, too, stays: a file that is too large is an error to write.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if namespaces:
        enter_namespaces()
        seal([os.fsencode(value) for name, value in values if name == "--writable"])
    for name, value in values:
        if name == "--rlimit":
            limit(*value.split("="))
    drop_capabilities()
    # New credentials have taken it away.
    _libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    os.execvp(program[0], program)  # noqa: S606 - it is what this is for


def enter_namespaces() -> None:
    """Have a network and mounts of its own; as an ordinary user by way of a user namespace, as the same user."""
    user, group = os.geteuid(), os.getegid()
    if user == 0 and _libc.unshare(CLONE_NEWNS | CLONE_NEWNET) == 0:
        return
    _checked(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET), "user namespaces")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - pathlib takes longer to import than all of this
            file.write(text)


def seal(writable: Sequence[bytes]) -> None:
    """Make everything read-only but some folders."""
    _checked(_libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "private mounts")
    for folder in writable:
        _checked(_libc.mount(folder, folder, None, ctypes.c_ulong(MS_BIND | MS_REC), None), "a mount")
    _set_attributes(b"/", AT_RECURSIVE, _MountAttributes(attr_set=MOUNT_ATTR_RDONLY))
    for folder in writable:
        _set_attributes(folder, 0, _MountAttributes(attr_clr=MOUNT_ATTR_RDONLY))
    # The folder that this is in, as it is mounted now.
    os.chdir(os.getcwd())  # noqa: PTH109 - see above


def drop_capabilities() -> None:
    """Give up what a program started from here could undo this with; without namespaces, only what it could gain."""
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(LAST_CAP + 1):
        if capability not in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def limit(name: str, number: str) -> None:
    """Lower a limit of this process; one that is lower already stays."""
    which = getattr(resource, f"RLIMIT_{name}")
    _, hard = resource.getrlimit(which)
    wanted = int(number)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(which, (most, most))


def _set_attributes(path: bytes, flags: int, attributes: _MountAttributes) -> None:
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    done = _libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, flags, ctypes.byref(attributes), size)
    _checked(done, "read-only mounts")


def _checked(done: int, what: str) -> None:
    if done:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: {what}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"cannot confine {sys.argv[-1]}: {error}\n")
        sys.exit(FAILED)
