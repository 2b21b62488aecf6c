"""Real importers as judges of what the build released."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Importers, released_file
from tests.e2e.importers import Tree, VirtualBox
from tests.tools import context_in, plan_of
from vmimage import PROJECT
from vmimage.formats.box import vagrantfile
from vmimage.formats.format import Appliance
from vmimage.formats.libvirt_box import write_libvirt_box
from vmimage.formats.ova import write_ova
from vmimage.formats.virtualbox_box import write_virtualbox_box
from vmimage.pipeline import stages_of, the_stage
from vmimage.stages.export import ExportStage, appliance
from vmimage.util.errors import BuildError
from vmimage.util.run import Confine, run
from vmimage.vm.forwards import FORWARDS

FORWARDED = [
    "http,tcp,127.0.0.1,8080,,80",
    "https,tcp,127.0.0.1,8443,,443",
    "kubernetes,tcp,127.0.0.1,6443,,6443",
    "ssh,tcp,127.0.0.1,2222,,22",
]
# Emulated, since KVM does not work everywhere where tests run; one processor, since QEMU 7.2 emulating several at once
# lets a kernel that patches its own code crash now and then.
VAGRANTFILE = """
Vagrant.configure("2") do |config|
  config.vm.box = "toolbox"
  config.vm.provider :libvirt do |libvirt|
    libvirt.driver = "qemu"
    libvirt.cpus = 1
    libvirt.cpu_mode = "custom"
    libvirt.cpu_model = "qemu64"
  end
end
"""
DAEMONS = "set -e; virtlogd --daemon; libvirtd --daemon; cd /root/run; "


@pytest.fixture(scope="session")
def virtualbox(importers: Importers) -> VirtualBox:
    try:
        return importers.virtualbox.result()
    except BuildError as error:
        pytest.skip(f"VirtualBox cannot be had from this machine's Debian mirror: {error.message[-300:]}")


@pytest.fixture(scope="session")
def libvirt(importers: Importers) -> Tree:
    try:
        return importers.libvirt.result()
    except BuildError as error:
        pytest.skip(f"libvirt and Vagrant cannot be had from this machine's Debian mirror: {error.message[-300:]}")


@pytest.fixture(scope="session")
def boxes(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Vagrant boxes of the disk that was released, which is `disk.raw`."""
    folder = tmp_path_factory.mktemp("boxes")
    disk = folder / "disk.raw"
    run(["qemu-img", "convert", "-O", "raw", released_file(release, "qcow2"), disk])
    forwards = tuple((name, forward.host, forward.guest) for name, forward in FORWARDS.items())
    machine = Appliance(
        name="toolbox", version="1", vendor="a", summary="b", cpus=2, memory_mib=2048, forwards=forwards
    )
    templates = PROJECT / "templates"
    texts = {kind: vagrantfile(machine, kind) for kind in ("libvirt", "virtualbox")}
    write_libvirt_box(disk, folder / "libvirt.box", texts["libvirt"], "zstd")
    ovf = templates / "appliance.ovf.j2"
    write_virtualbox_box(disk, folder / "virtualbox.box", machine, ovf, texts["virtualbox"], level=1)
    return folder


def test_virtualbox_imports_the_ova_as_the_machine_that_it_describes(release: Path, virtualbox: VirtualBox) -> None:
    inside = virtualbox.tree.path / "tmp"
    shutil.copy(released_file(release, "ova"), inside / "toolbox.ova")
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
    assert sorted(value for key, value in machine.items() if key.startswith("Forwarding(")) == FORWARDED
    same_disk(released_file(release, "qcow2"), "qcow2", virtualbox, machine)
    virtualbox.manage("unregistervm", "toolbox", "--delete")


def test_virtualbox_gives_dev_env_its_memory_and_all_its_ports(virtualbox: VirtualBox, tmp_path: Path) -> None:
    # Its descriptor, with a small disk: what is in the disk does not matter here.
    export = the_stage(stages_of(plan_of("dev-env"), context_in(tmp_path)), ExportStage)
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"x" * (1 << 20))
    ova = virtualbox.tree.path / "tmp" / "dev-env.ova"
    write_ova(disk, ova, appliance(export), PROJECT / "templates/appliance.ovf.j2", level=1)
    said = virtualbox.manage("import", "/tmp/dev-env.ova").output  # noqa: S108 - of the root directory
    assert "Successfully imported" in said
    machine = virtualbox.machine("dev-env")
    assert (machine["memory"], machine["cpus"], machine["ostype"]) == ("4096", "2", "Debian (64-bit)")
    forwards = {value for key, value in machine.items() if key.startswith("Forwarding(")}
    assert forwards == {*FORWARDED, *(f"tcp-{port},tcp,127.0.0.1,{port},,{port}" for port in range(31000, 31020))}
    virtualbox.manage("unregistervm", "dev-env", "--delete")


def same_disk(disk: Path, disk_format: str, virtualbox: VirtualBox, machine: dict[str, str]) -> None:
    imported = virtualbox.tree.path / machine["SATA-0-0"].lstrip("/")
    run(["qemu-img", "compare", "-f", disk_format, "-F", "vmdk", disk, imported], confine=Confine.FAKE_ROOT)


def test_virtualbox_imports_what_is_in_the_vagrant_box(boxes: Path, virtualbox: VirtualBox) -> None:
    inside = virtualbox.tree.path / "tmp" / "box"
    inside.mkdir()
    run(["tar", "-xf", boxes / "virtualbox.box", "-C", inside])
    said = virtualbox.manage("import", "/tmp/box/box.ovf").output  # noqa: S108 - of the root directory
    assert "Successfully imported" in said
    same_disk(boxes / "disk.raw", "raw", virtualbox, virtualbox.machine("toolbox"))
    virtualbox.manage("unregistervm", "toolbox", "--delete")


def test_virt_v2v_reads_the_ova(release: Path, libvirt: Tree) -> None:
    shutil.copy(released_file(release, "ova"), libvirt.path / "tmp" / "toolbox.ova")
    said = libvirt.run("virt-v2v", "--print-source", "-i", "ova", "/tmp/toolbox.ova").output  # noqa: S108
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())}
    assert facts["source name"] == "toolbox"
    assert facts["memory"] == f"{2 << 30} (bytes)"
    assert (facts["nr vCPUs"], facts["firmware"]) == ("2", "bios")
    assert "0 [sata]" in said
    assert 'Bridge "NAT" [e1000]' in said


@pytest.mark.skipif("VMIMAGE_TEST_VAGRANT" not in os.environ, reason="takes minutes: `invoke test --vagrant`")
def test_vagrant_starts_the_libvirt_box_and_its_key_works(boxes: Path, libvirt: Tree) -> None:
    network = libvirt.run("sh", "-c", f"mkdir -p /root/run; {DAEMONS} virsh --quiet net-start default", check=False)
    if network.returncode:
        pytest.skip(f"this kernel lets libvirt make no network: {network.output[-300:]}")
    shutil.move(boxes / "libvirt.box", libvirt.path / "tmp")
    (libvirt.path / "root/run/Vagrantfile").write_text(VAGRANTFILE)
    commands = (
        "vagrant box add --name toolbox /tmp/libvirt.box; vagrant up --provider=libvirt; "
        "vagrant ssh --command 'kubectl version --client; id -un'; vagrant destroy --force"
    )
    said = libvirt.run("sh", "-c", DAEMONS + commands, timeout=900).output
    assert "Successfully added box 'toolbox' (v0) for 'libvirt'" in said
    assert "Machine booted and ready!" in said
    assert "80 (guest) => 8080 (host)" in said
    assert "\ndev\n" in said.replace("\r", "")
