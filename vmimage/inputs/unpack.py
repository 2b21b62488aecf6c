"""For `bootstrap`, before there is an environment: takes what it needs out of a bundle of inputs.

    python3 -I -B unpack.py (wheels|packer) BUNDLE FOLDER

wheels: the Python packages. packer: a Debian mirror with Packer, in FOLDER/0. Exit status: 0; 1 with what is wrong on
standard error; 2 if the bundle has none.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

if __name__ == "__main__":
    # `-I` leaves out this script's own folder, and what lies in the caller's.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vmimage.inputs.bundle import Bundle, opened_bundle
from vmimage.util.errors import InputError
from vmimage.util.files import expanded
from vmimage.util.printable import printable

NONE = 2


def python_here() -> tuple[str, str]:
    """Return the version and the platform of this Python, which wheels are for."""
    return f"{sys.version_info.major}.{sys.version_info.minor}", sysconfig.get_platform()


def unpack_wheels(bundle: Bundle, folder: Path) -> int:
    """Write the Python packages.

    Raises:
        InputError: They are for another Python.
    """
    python = bundle.index.python
    if (python.version, python.platform) != python_here():
        here = " for ".join(python_here())
        raise InputError(
            f"{bundle.path} has the packages of Python {python.version} for {python.platform}, and here is {here}",
            hint="make the bundle on a host with the same release of Debian",
        )
    for name, sha256 in python.files.items():
        bundle.extract(sha256, folder / name)
    return 0


def unpack_packer(bundle: Bundle, folder: Path) -> int:
    """Write a mirror with Packer."""
    packer = bundle.index.packer
    if not packer:
        return NONE
    packer.lay(folder, bundle.extract)
    return 0


PARTS = {"wheels": unpack_wheels, "packer": unpack_packer}


def main(part: str, path: str, folder: str) -> int:
    """Take a part out of a bundle; returns the exit status."""
    try:
        with opened_bundle(expanded(path, "VMIMAGE_BUNDLE")) as bundle:
            return PARTS[part](bundle, Path(folder))
    except (InputError, OSError) as error:
        hint = f"\nbootstrap: {error.hint}" if isinstance(error, InputError) else ""
        sys.stderr.write(printable(f"bootstrap: {error}{hint}\n"))
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
