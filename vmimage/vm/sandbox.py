"""QEMU's own sandbox (seccomp): a guest that breaks out of its devices starts no program and gains no rights.

Source: `-sandbox` in https://www.qemu.org/docs/master/system/invocation.html
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from functools import cache

from vmimage.util.run import spawn

log = logging.getLogger(__name__)

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
PROBE_SECONDS = 20.0
_QUIT = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'


def sandbox_arguments() -> tuple[str, ...]:
    """Return QEMU's arguments that confine it; none where this QEMU or this kernel cannot."""
    return _usable(SANDBOX, shutil.which("qemu-system-x86_64"))


@cache
def _usable(sandbox: str, _path: str | None) -> tuple[str, ...]:
    arguments = ("-sandbox", sandbox)
    if probe(arguments):
        return arguments
    log.warning("QEMU runs without its sandbox: it was built without seccomp, or this kernel forbids it")
    return ()


def probe(arguments: tuple[str, ...]) -> bool:
    """Tell whether a QEMU without a machine starts with these arguments, and ends when it is told to."""
    argv = ["qemu-system-x86_64", *arguments, "-machine", "none", "-nodefaults", "-no-user-config"]
    with spawn([*argv, "-display", "none", "-qmp", "stdio"], stdin=subprocess.PIPE) as process:
        try:
            process.communicate(_QUIT, timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return process.returncode == 0
