"""What is in a version folder: the files that were verified, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vmimage import PROJECT
from vmimage.formats.all import BY_NAME
from vmimage.spec.model import port_range
from vmimage.stages.release.changes import changes_since
from vmimage.stages.release.manifest import MANIFEST, Manifest
from vmimage.util.console import human_bytes
from vmimage.util.errors import VerifyError
from vmimage.util.files import place, sha256_file
from vmimage.util.render import render
from vmimage.vm.forwards import FORWARDS


def require_verdict(verdict: Mapping[str, Any], kind: str, file: Path) -> str:
    """Check that a verdict passed and speaks of exactly this file; returns the file's SHA-256.

    Raises:
        VerifyError: It does not.
    """
    actual = sha256_file(file)
    if verdict.get("passed") is not True:
        raise VerifyError(f"{file.name} has no passing verdict, so it is not released", hint="run the build again")
    verified = verdict.get("files", {}).get(kind, {}).get("sha256")
    if verified != actual:
        raise VerifyError(
            f"{file.name} is not the file that was verified, so it is not released\n"
            f"    verified {verified}\n    found    {actual}",
            hint="run the build again; `invoke clean` first if it stays so",
        )
    return actual


def fill_release(
    work: Path,
    *,
    image: str,
    arch: str,
    version: str,
    export: Path,
    files: Mapping[str, Mapping[str, object]],
    verdict: Mapping[str, Any],
    manifest: Mapping[str, Any],
    sboms: Mapping[str, str],
    before: Manifest | None,
) -> Mapping[str, object]:
    """Put the files, manifest.json, SHA256SUMS and README.md of a release into a folder; returns the manifest.

    Args:
        files: Format -> name, bytes and sha256 of the exported files in `export`.
        manifest: What else the manifest is to say.
        sboms: End of a name -> what stands in it: ".cdx.json", ".spdx.json".
        before: The release before this one, if there is one.

    Raises:
        VerifyError: There is no passing verdict on exactly these bytes.
    """
    released: dict[str, dict[str, object]] = {}
    for kind, facts in files.items():
        name = f"{image}-{version}-{arch}.{kind}"
        place(export / str(facts["name"]), work / name)
        digest = require_verdict(verdict, kind, work / name)
        released[kind] = {"name": name, "bytes": facts["bytes"], "sha256": digest}
    described = {}
    for end, text in sboms.items():
        file = work / f"{image}-{version}-{arch}{end}"
        file.write_text(text)
        described[end] = {"name": file.name, "sha256": sha256_file(file)}
    content = {"image": image, "version": version, **manifest, "files": released, "sboms": described}
    content["verdict"] = verdict
    (work / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    values = {"manifest": content, "files": released, "sboms": described, "forwards": FORWARDS, "size": human_bytes}
    pins = {name: str(pin["version"]) for name, pin in manifest["pins"].items()}
    values["changes"] = changes_since(before, pins, manifest["packages"]) if before else None
    values["ports"] = port_range(manifest["machine"].get("ports"))
    values["usages"] = list(_usages(released, image, manifest["machine"]["memory"]))
    (work / "README.md").write_text(render(PROJECT / "templates" / "release-readme.md.j2", values))
    sums = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(work.iterdir())]
    (work / "SHA256SUMS").write_text("".join(sums))
    return content


def _usages(files: Mapping[str, Mapping[str, object]], image: str, memory: str) -> Iterator[str]:
    """Yield how to use each file that has no section of its own in the release's README."""
    for kind, facts in files.items():
        usage = BY_NAME[kind].usage
        if usage:
            short = memory.replace(" GiB", "GB").replace(" MiB", "MB")
            told = usage.format(file=facts["name"], image=image, memory=short)
            yield f"`{facts['name']}`: {told}"
