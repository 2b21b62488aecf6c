"""dev-env, built with the tests' stand-in for k3s, which comes from a mirror as the real one would.

With the mirror of the real files (VMIMAGE_TEST_REAL_K3S names it), the same with the real k3s, containers included.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path

import pytest
import zstandard

from tests.k3s_stand_in import VERSION, build
from tests.sandbox import Done, Sandbox, copy_project
from vmimage import PROJECT

REAL = os.environ.get("VMIMAGE_TEST_REAL_K3S", "")


def stand_in_mirror(folder: Path) -> dict[str, str]:
    """Fill a mirror with the stand-in and an archive of one image; returns the digests of the pins."""
    folder.mkdir()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        data = json.dumps([{"Config": "c", "RepoTags": ["docker.io/rancher/stand-in:1"], "Layers": []}]).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    images = zstandard.compress(archive.getvalue())
    (folder / f"k3s-airgap-images-{VERSION}-amd64").write_bytes(images)
    return {"k3s": build(folder / f"k3s-{VERSION}-amd64"), "k3s-airgap-images": hashlib.sha256(images).hexdigest()}


@pytest.fixture(scope="module")
def dev_env(sandbox: Sandbox, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The build; it comes after toolbox's, whose base it shares."""
    folder = tmp_path_factory.mktemp("dev-env")
    copy_project(PROJECT, folder / "project")
    images = folder / "project" / "images.yaml"
    text = re.sub(r"(\n  dev-env:.*?\n      qcow2: .*?\n)      ova: .*?\n", r"\1", images.read_text(), flags=re.DOTALL)
    mirror = REAL
    if not REAL:
        mirror = str(folder / "mirror")
        for pin, digest in stand_in_mirror(folder / "mirror").items():
            text, changed = re.subn(
                rf"(\n  {pin}:\n.*?amd64: )[0-9a-f]{{64}}", rf"\g<1>{digest}", text, count=1, flags=re.DOTALL
            )
            assert changed
    images.write_text(text)
    there = Sandbox(folder / "project", sandbox.cache, sandbox.dist, {"https_proxy": ""})
    return there.invoke("build-image", "dev-env", "--mirror", mirror, "--json")


def test_dev_env_is_built_verified_and_released(dev_env: Done) -> None:
    assert dev_env.returncode == 0, dev_env.stderr
    release = Path(dev_env.event("result")["release"])
    manifest = json.loads((release / "manifest.json").read_text())
    assert set(manifest["files"]) == {"qcow2"}
    assert manifest["pins"]["k3s"]["version"] == VERSION
    checks = {check["name"]: check for check in manifest["verdict"]["checks"]}
    assert set(checks) == {"disk", "qcow2-virtio-uefi", "qcow2-virtio-bios"}
    # What needs containers is skipped with the stand-in, and nothing else.
    assert sum(check["skipped"] for check in checks.values()) == (0 if REAL else 2)
    outcomes = {seen["stage"]: seen["outcome"] for seen in dev_env.events if seen["event"] == "end"}
    assert outcomes["base"] == "unchanged, from the cache"
