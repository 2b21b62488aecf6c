from __future__ import annotations

import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests.tools import context_in, plan_of
from vmimage import PROJECT
from vmimage.stages.bake.machine import OVERLAY, packer_values
from vmimage.stages.bake.packer import packer, prepare_plugins
from vmimage.stages.bake.payload import environment
from vmimage.stages.bake.ports import BakePorts
from vmimage.stages.bake.snapshot import SOCKET
from vmimage.stages.bake.stage import BakeStage, bake_stage
from vmimage.stages.base import base_stage
from vmimage.util.render import render
from vmimage.util.run import run
from vmimage.vm.ssh import make_key


@pytest.fixture
def bake(tmp_path: Path) -> BakeStage:
    """The bake of dev-env."""
    plan = plan_of("dev-env")
    return bake_stage(plan, base_stage(plan, context_in(tmp_path / "context")))


def test_environment_of_the_steps_is_shell(bake: BakeStage) -> None:
    layer = next(layer for layer in bake.layers if layer.step_name == "50-k3s")
    script = environment(layer.script, layer.pins) + 'echo "$PINS $K3S_AIRGAP_IMAGES_VERSION ${KUBECTL_VERSION-none}"'
    shown = run(["sh", "-euc", script]).output
    assert shown == f"/run/vmimage/pins/50-k3s {layer.pins['k3s']['version']} none", "a step sees its own pins only"


STUB = """\
#!/bin/sh
case $* in
    -version) exec {real} -version ;;
esac
for argument; do
    printf '%s\\n' "$argument" >> {said}
done
exit 1
"""


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for QEMU, found before it; returns the file in which its arguments are, a line each."""
    stub, said = tmp_path / "bin/qemu-system-x86_64", tmp_path / "arguments"
    stub.parent.mkdir()
    stub.write_text(STUB.format(real=shutil.which(stub.name), said=said))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    return said


def nobody_else_gets_in(arguments: list[str]) -> bool:
    """Tell whether a QEMU has no display and no monitor by which other users of this host get in."""
    given = list(pairwise(arguments))
    return (
        ("-monitor", "none") in given
        and "-nodefaults" in arguments
        and [value for flag, value in given if flag == "-vnc"] == ["none"]
        and not {"-spice", "-gdb", "-s", "-qmp-pretty"} & set(arguments)
    )


def test_packer_starts_the_machine_of_a_bake_without_vnc_and_monitor(
    bake: BakeStage, qemu: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "packer"
    folder.mkdir()
    run(["qemu-img", "create", "-q", "-f", "qcow2", folder / OVERLAY, "1M"])
    ports, sandbox = BakePorts(ssh=20000, vnc=25000), ("-sandbox", "on")
    values = packer_values(["99-seal.sh"], tmp_path, folder, make_key(folder), "tcg", ports, 22000, sandbox)
    (folder / "image.pkr.hcl").write_text(render(PROJECT / "packer/image.pkr.hcl.j2", values))
    prepare_plugins(folder, print)
    done = packer("build", folder, timeout=60)
    arguments = qemu.read_text().splitlines()
    assert nobody_else_gets_in(arguments), arguments
    assert ("-sandbox", "on") in pairwise(arguments)
    assert ("-qmp", f"unix:{SOCKET},server=on,wait=off") in pairwise(arguments), "in a folder of ours"
    assert "via VNC" not in done.output.replace("connect via VNC", "")


def test_packer_starts_the_machine_of_the_peer_without_vnc_and_monitor(qemu: Path, tmp_path: Path) -> None:
    template = PROJECT / "templates/peer/image.pkr.hcl"
    names = re.findall(r'^variable "(\w+)"', template.read_text(), re.MULTILINE)
    numbers = {"cpus": 1, "memory": 512}
    base = tmp_path / "base.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", base, "1M"])
    values = {name: str(numbers.get(name, tmp_path / name)) for name in names}
    values |= {
        "base": str(base),
        "accelerator": "tcg",
        "disk_size": "1M",
        "private_key": str(make_key(tmp_path).private),
    }
    for name in ("payload", "provision", "export"):
        Path(values[name]).write_text("#!/bin/sh\n")
    folder = tmp_path / "packer"
    folder.mkdir()
    (folder / "image.pkr.hcl").write_text(template.read_text())
    prepare_plugins(folder, print)
    done = packer("build", folder, *(f"-var={name}={value}" for name, value in values.items()), timeout=60)
    assert qemu.exists(), done.output
    assert nobody_else_gets_in(qemu.read_text().splitlines())
