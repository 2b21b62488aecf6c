"""The payload: a read-only disk that carries scripts and big files into the guest of a bake."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmimage import PROJECT
from vmimage.errors import FetchError
from vmimage.files import disk_use, sha256_file
from vmimage.plan import TEMPLATE, PinnedFile, Plan, guest_values
from vmimage.render import render
from vmimage.run import Confine, run

LABEL = "payload"
MOUNT = "/run/vmimage"
SLACK = 64 << 20


def write_payload(plan: Plan, scripts: Sequence[str], files: Mapping[str, Path], folder: Path, image: Path) -> None:
    """Write the payload disk: what the steps read, and nothing for other steps.

    Args:
        scripts: The steps that will run, the seal among them.
        files: Pin name -> verified file.
        folder: Where its files are laid out first; it is removed.

    Raises:
        FetchError: A file in the cache is no longer what was pinned.
    """
    provision = PROJECT / "provision"
    for name in ("pins", "provision", "files", "env"):
        (folder / name).mkdir(parents=True)
    shutil.copy(provision / "run-step", folder / "run-step")
    pins = {step.script: step.pins for step in plan.steps}
    for script in scripts:
        name = script.removesuffix(".sh")
        (folder / "pins" / name).mkdir()
        for pin in pins.get(script, ()):
            _add_pin(pin, files[pin.name], folder / "pins" / name / pin.name)
        shutil.copy(provision / script, folder / "provision" / script)
        (folder / "env" / script).write_text(environment(script, pins.get(script, ())))
        overlay = provision / "files" / name
        if overlay.is_dir():
            caches = shutil.ignore_patterns("__pycache__")
            shutil.copytree(overlay, folder / "files" / name, symlinks=True, ignore=caches)
            render_templates(folder / "files" / name, guest_values(plan.name))
            normal_modes(folder / "files" / name)
    (folder / "release.json").write_text(json.dumps(release_facts(plan), indent=2) + "\n")
    size = disk_use(folder) * 11 // 10 + SLACK
    ext4 = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", LABEL]
    run([*ext4, "-d", folder, image, f"{size // 1024}k"], confine=Confine.FAKE_ROOT)
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


def _add_pin(pin: PinnedFile, file: Path, to: Path) -> None:
    shutil.copyfile(file, to)
    if sha256_file(to) != pin.sha256:
        file.unlink()
        raise FetchError(f"{file} was damaged in the cache, and removed", hint="run the command again")


def release_facts(plan: Plan) -> dict[str, object]:
    """Return what the image says of itself in /etc/vmimage/release.json."""
    facts = plan.bake_stage.inputs["facts"]
    assert isinstance(facts, dict)  # noqa: S101 - the plan wrote it
    return {"image": plan.name, **facts, "build": plan.bake_stage.key}


def environment(script: str, pins: Sequence[PinnedFile]) -> str:
    """Return the shell variables that a provision step has."""
    values = {
        "PAYLOAD": MOUNT,
        "PINS": f"{MOUNT}/pins/{script.removesuffix('.sh')}",
        "DEBIAN_FRONTEND": "noninteractive",
        **{f"{pin.name.upper().replace('-', '_')}_VERSION": pin.version for pin in pins},
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
