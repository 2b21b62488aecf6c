"""Real importers as judges of the OVA that the build released."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.importers import VirtualBox, install_virtualbox
from vmimage.errors import BuildError
from vmimage.run import Confine, run


@pytest.fixture(scope="session")
def virtualbox(tmp_path_factory: pytest.TempPathFactory) -> VirtualBox:
    try:
        return install_virtualbox(tmp_path_factory.mktemp("virtualbox"))
    except BuildError as error:
        pytest.skip(f"VirtualBox cannot be had from this machine's Debian mirror: {error.message[-300:]}")


def test_virtualbox_imports_the_ova_as_the_machine_that_it_describes(release: Path, virtualbox: VirtualBox) -> None:
    manifest = json.loads((release / "manifest.json").read_text())
    inside = virtualbox.tree / "tmp"
    shutil.copy(release / manifest["files"]["ova"]["name"], inside / "toolbox.ova")
    said = virtualbox.manage("import", "/tmp/toolbox.ova").output  # noqa: S108 - of the root directory
    assert "Successfully imported" in said
    assert "warning" not in said.lower()

    machine = virtualbox.machine("toolbox")
    wanted = {
        "ostype": "Debian (64-bit)",
        "memory": "2048",
        "cpus": "2",
        "firmware": "BIOS",
        "boot1": "disk",
        "graphicscontroller": "vmsvga",
        "storagecontrollertype0": "IntelAhci",
        "nic1": "nat",
        "nictype1": "82540EM",
        "nic2": "none",
        "audio": "none",
        "usb": "off",
    }
    assert {key: machine.get(key) for key in wanted} == wanted
    assert not [key for key in machine if key.startswith("storagecontrollername") and key != "storagecontrollername0"]
    assert sorted(value for key, value in machine.items() if key.startswith("Forwarding(")) == [
        "http,tcp,127.0.0.1,8080,,80",
        "https,tcp,127.0.0.1,8443,,443",
        "kubernetes,tcp,127.0.0.1,6443,,6443",
        "ssh,tcp,127.0.0.1,2222,,22",
    ]

    imported = virtualbox.tree / machine["SATA-0-0"].lstrip("/")
    ours = release / manifest["files"]["qcow2"]["name"]
    run(["qemu-img", "compare", "-f", "qcow2", "-F", "vmdk", ours, imported], confine=Confine.FAKE_ROOT)
    virtualbox.manage("unregistervm", "toolbox", "--delete")
