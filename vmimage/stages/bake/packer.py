"""Packer through packerpy, in a process of its own.

`PackerClient.run` blocks, has no timeout and returns without waiting for the exit status; as a child in a PID
namespace it can be killed with Packer, its plugins and their QEMU at any moment.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from vmimage import PROJECT
from vmimage.host import tool_version, version_tuple
from vmimage.util.errors import HostError
from vmimage.util.render import render
from vmimage.util.run import Completed, Confine, run, tail

PLUGINS_EXTERNAL_SINCE = (1, 11)
# Packer's plugins listen on Unix sockets in its temporary folder; a socket's path has at most 107 bytes.
LONGEST_TEMPORARY = 80
INIT_SECONDS = 300.0
PLUGIN_VERSIONS = ">= 1.0.9, < 2.0.0"
"""Of the qemu plugin, where one is installed."""
PINNED_PLUGIN = "= 1.1.0"
"""What `packer init` takes. 1.1.2 ends guests too early: https://github.com/hashicorp/packer-plugin-qemu/issues/198

A hash cannot be pinned: Packer compares with the SHA256SUMS that lie beside the file.
"""


def needs_plugins(packer_version: str) -> bool:
    """Tell whether this Packer comes without the qemu plugin."""
    return version_tuple(packer_version) >= PLUGINS_EXTERNAL_SINCE


def write_plugins_file(templates: Path, folder: Path, packer_version: str, wanted: str = PLUGIN_VERSIONS) -> None:
    """Render required_plugins beside the template, for those releases that understand it and need it."""
    if needs_plugins(packer_version):
        (folder / "plugins.pkr.hcl").write_text(render(templates / "plugins.pkr.hcl.j2", {"version": wanted}))


def packer(
    command: str, folder: Path, *args: str, timeout: float, on_line: Callable[[str], None] | None = None
) -> Completed:
    """Run `packer COMMAND ARGS FOLDER` through packerpy, in `folder`, and wait; a failure is returned, not raised.

    Temporary files and Packer's own log go below `folder`.
    """
    env = {
        "PYTHONPATH": str(PROJECT),
        "CHECKPOINT_DISABLE": "1",
        "PACKER_NO_COLOR": "1",
        "PACKER_CACHE_DIR": str(folder / "cache"),
    }
    temporary = folder / "tmp"
    if len(str(temporary)) <= LONGEST_TEMPORARY:
        temporary.mkdir(exist_ok=True)
        env |= {"TMPDIR": str(temporary), "PACKER_TMP_DIR": str(temporary)}
    argv = [sys.executable, "-m", "vmimage.stages.bake.packer", command, str(folder), *args]
    return run(
        argv,
        confine=Confine.TREE,
        env=env,
        cwd=folder,
        timeout=timeout,
        check=False,
        on_line=on_line,
    )


def prepare_plugins(folder: Path, tell: Callable[[str], None]) -> None:
    """Let Packer 1.11 and later have the qemu plugin: the one that is installed, else `packer init`.

    Args:
        folder: Where Packer's template lies.
        tell: Is told when something is installed.

    Raises:
        HostError: It cannot be had.
    """
    version = tool_version("packer")
    write_plugins_file(PROJECT / "packer", folder, version)
    if not needs_plugins(version) or _plugins_installed(folder):
        return
    tell(f"install Packer's qemu plugin {PINNED_PLUGIN.removeprefix('= ')} (packer init)")
    write_plugins_file(PROJECT / "packer", folder, version, PINNED_PLUGIN)
    done = packer("init", folder, timeout=INIT_SECONDS)
    if done.returncode:
        raise HostError(
            f"Packer {version} needs its qemu plugin, and `packer init` failed:{tail(done.output, 6)}",
            hint="without internet: `packer plugins install --path FILE github.com/hashicorp/qemu`",
        )


def _plugins_installed(folder: Path) -> bool:
    found = run(["packer", "plugins", "required", folder], check=False)
    installed = run(["packer", "plugins", "installed"], check=False)
    return found.returncode == 0 and "hashicorp/qemu" in installed.output


def main(command: str, folder: str, *args: str) -> int:
    """Run inside the confined child: stream Packer's output to ours and return its exit status."""
    from packerpy import PackerClient

    logger = logging.getLogger("packer")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    client = PackerClient(folder, stream_file_dir=str(Path(folder, "log")), log=logger)
    process: subprocess.Popen[str] = client.run(command, *args)
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
