"""Changes of files that a power-off cannot undo: what a function here did is on the disk when it returns."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def there(path: Path) -> bool:
    """Tell whether something has this name, be it a link that leads nowhere."""
    return os.path.lexists(path)


def write(path: Path, text: str) -> None:
    """Put a text into a file's place: afterwards it holds the old text or the new one."""
    beside = path.with_name(f".{path.name}.new")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    _sync(path.parent)


def copy(source: Path, to: Path) -> None:
    """Copy a file, a link or a folder with all that is in it."""
    if source.is_symlink():
        to.symlink_to(source.readlink())
    elif source.is_dir():
        shutil.copytree(source, to, symlinks=True)
        for folder, _, names in os.walk(to):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
    else:
        shutil.copy2(source, to)
        _sync(to)
    _sync(to.parent)


def move(source: Path, to: Path) -> None:
    """Give something another name in its folder; what had that name is replaced, a folder is removed before."""
    if to.is_dir() and not to.is_symlink():
        shutil.rmtree(to)
    source.replace(to)
    _sync(to.parent)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, if it is there."""
    if not there(path):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    _sync(path.parent)


def _sync(path: Path) -> None:
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return  # its name is on the disk with its folder; it has no contents
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
