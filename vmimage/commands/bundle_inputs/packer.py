"""Packer as a Debian package, with the lists by which apt verifies it.

Debian 13 has none: it is that of Debian 12, as `bootstrap` installs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from debian.deb822 import Deb822

from vmimage import host
from vmimage.cache.store import Store
from vmimage.inputs.kept import DEBS_NAME, LISTS, TARGETS_NAME, keep_lists, kept_part
from vmimage.inputs.mirror import TARGETS, MirrorPart
from vmimage.util.console import Step
from vmimage.util.errors import BuildError, FetchError, VmimageError
from vmimage.util.files import listed, remove_tree, sha256_file
from vmimage.util.masking import masked
from vmimage.util.run import run

STAGE = "packer"
SUITE = "bookworm"
SECONDS = 600.0


def get_packer(
    store: Store, debian_mirror: str | None, step: Step, warn: Callable[[str], None], files: dict[str, Path]
) -> MirrorPart | None:
    """Get Packer, if the cache has it not; its files are added to `files`, by their SHA-256.

    Args:
        debian_mirror: As `--deb-mirror` names it.

    Returns:
        None where it cannot be had, which `warn` is told: who builds may have Packer from elsewhere.
    """
    try:
        # Of all components of all suites, one has it.
        lines = host.debian_mirrors(SUITE, debian_mirror)[:1]
        if not lines:
            raise FetchError("this host has no Debian mirror", hint="name one with --deb-mirror")
        inputs = {"suite": SUITE, "mirrors": [masked(line) for line in lines], "package": "packer"}
        result = store.get_or_make(STAGE, inputs, lambda work: download(lines, work, step), step)
    except VmimageError as error:
        step.outcome = "left out"
        warn(f"Packer is not in the bundle, install it there by other means: {error.message}")
        return None
    part = kept_part(result.path)
    for digest in part.digests:
        files[digest] = next(
            each for each in (result.path / LISTS / digest, result.path / DEBS_NAME / digest) if each.is_file()
        )
    step.outcome = ", ".join(Path(path).name for path in part.debs)
    return part


def download(lines: list[str], work: Path, step: Step) -> Mapping[str, object]:
    """Download Packer by apt, which verifies it; nothing of this host's packages is read or changed."""
    kept, apt = work / "kept", work / "apt"
    for folder in (kept / DEBS_NAME, apt / LISTS / "partial", apt / "cache" / "archives" / "partial", apt / "parts"):
        folder.mkdir(parents=True)
    (apt / "sources.list").write_text("".join(f"{line}\n" for line in lines))
    settings = {
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": apt / "parts",
        "Dir::Etc::Parts": apt / "parts",
        "Dir::State::Lists": apt / LISTS,
        "Dir::State::Status": "/dev/null",
        "Dir::Cache": apt / "cache",
        "Acquire::Languages": "none",
        "Acquire::GzipIndexes": "false",
        "APT::Sandbox::User": "root",
        "APT::Update::Error-Mode": "any",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    step.now("read the lists of packages")
    run(["apt-get", *options, "--quiet", "update"], timeout=SECONDS, error=FetchError)
    step.now("download packer")
    run(["apt-get", *options, "--quiet", "download", "packer"], cwd=kept / DEBS_NAME, timeout=SECONDS, error=FetchError)
    (kept / TARGETS_NAME).write_text(run(["apt-get", *options, "indextargets", "--format", TARGETS]).output)
    told = Deb822(run(["apt-cache", *options, "show", "--no-all-versions", "packer"]).output.splitlines())
    (apt / LISTS).rename(kept / LISTS)
    (deb,) = listed(kept / DEBS_NAME)
    digest = sha256_file(deb)
    if told.get("SHA256") != digest:
        raise BuildError(f"{deb.name} is not the file that the mirror's lists name")
    keep_lists(kept, [{"file": told["Filename"], "sha256": digest}], work)
    (work / DEBS_NAME).mkdir()
    deb.rename(work / DEBS_NAME / digest)
    for folder in (kept, apt):
        remove_tree(folder)
    return {"version": told.get("Version", "")}
