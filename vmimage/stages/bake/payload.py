"""The payload: a read-only disk that carries scripts and big files into the guest of a bake."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from vmimage import PROJECT
from vmimage.plan import TEMPLATE, PinFacts, guest_values, overlays
from vmimage.util.errors import FetchError
from vmimage.util.files import disk_use, sha256_file
from vmimage.util.render import render
from vmimage.util.run import Confine, run
from vmimage.util.unpack import extract_path

LABEL = "payload"
MOUNT = "/run/vmimage"
SLACK = 64 << 20
MOST_UNPACKED = 1 << 50


def write_payload(
    image: str,
    pins: Mapping[str, Mapping[str, PinFacts]],
    facts: Mapping[str, object],
    files: Callable[[str], Path],
    folder: Path,
    to: Path,
) -> None:
    """Write the payload disk: what the steps that will run read, and nothing for other steps.

    Args:
        pins: Script -> pin -> version, SHA-256 and members, for each script that will run, the seal among them.
        facts: What the image says of itself.
        files: Returns the verified file of a SHA-256.
        folder: Where its files are laid out first; it is removed.

    Raises:
        FetchError: A file in the cache is no longer what was pinned.
    """
    provision = PROJECT / "provision"
    for name in ("pins", "provision", "files", "env"):
        (folder / name).mkdir(parents=True)
    shutil.copy(provision / "run-step", folder / "run-step")
    for script, needed in pins.items():
        name = script.removesuffix(".sh")
        (folder / "pins" / name).mkdir()
        for pin, about in needed.items():
            _add_pin(files, about, folder / "pins" / name / pin)
        shutil.copy(provision / script, folder / "provision" / script)
        (folder / "env" / script).write_text(environment(script, needed))
        laid = folder / "files" / name
        for overlay, where in overlays(script).items():
            if (PROJECT / overlay).is_dir():
                place = laid / where.relative_to("/")
                caches = shutil.ignore_patterns("__pycache__")
                shutil.copytree(PROJECT / overlay, place, symlinks=True, ignore=caches, dirs_exist_ok=True)
        if laid.is_dir():
            render_templates(laid, guest_values(image))
            normal_modes(laid)
    (folder / "release.json").write_text(json.dumps(facts, indent=2) + "\n")
    size = disk_use(folder) * 11 // 10 + SLACK
    ext4 = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", LABEL]
    run([*ext4, "-d", folder, to, f"{size // 1024}k"], confine=Confine.FAKE_ROOT)
    shutil.rmtree(folder)


def render_templates(folder: Path, values: Mapping[str, object]) -> None:
    """Put what each template in a folder renders to into its place, without the suffix."""
    for template in sorted(folder.rglob(f"*{TEMPLATE}")):
        to = template.with_suffix("")
        to.write_text(render(template, values))
        shutil.copymode(template, to)
        template.unlink()


def normal_modes(folder: Path) -> None:
    """Give a folder and all in it the modes that git knows: the umask of who cloned the project is not to be seen."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _add_pin(files: Callable[[str], Path], about: PinFacts, to: Path) -> None:
    sha256, members = str(about["sha256"]), tuple(about.get("members", ()))
    file, got = files(sha256), to.with_name(f"{to.name}.archive") if members else to
    shutil.copyfile(file, got)
    if sha256_file(got) != sha256:
        file.unlink()
        raise FetchError(f"{file} was damaged in the cache, and removed", hint="run the command again")
    if members:
        # These bytes are pinned, and were unpacked within the pin's bounds when they were fetched.
        extract_path(got, members, to, most_bytes=MOST_UNPACKED)
        got.unlink()


def environment(script: str, pins: Mapping[str, PinFacts]) -> str:
    """Return the shell variables that a provision step has.

    Args:
        pins: Pin -> version and SHA-256 of each file that it installs.
    """
    values = {
        "PAYLOAD": MOUNT,
        "PINS": f"{MOUNT}/pins/{script.removesuffix('.sh')}",
        "DEBIAN_FRONTEND": "noninteractive",
        **{f"{pin.upper().replace('-', '_')}_VERSION": about["version"] for pin, about in pins.items()},
    }
    return "".join(f"export {name}={shlex.quote(str(value))}\n" for name, value in values.items())
