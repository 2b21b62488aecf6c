from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.unit.test_ova import APPLIANCE, OVF, TEMPLATE, sparse_disk
from vmimage.formats.ova import write_ova
from vmimage.util.run import run


def test_members_manifest_and_disk(tmp_path: Path) -> None:
    disk = sparse_disk(tmp_path)
    write_ova(disk, tmp_path / "box.ova", APPLIANCE, TEMPLATE, level=5)
    base = "box"
    with tarfile.open(tmp_path / "box.ova") as archive:
        assert archive.getnames() == [f"{base}.ovf", f"{base}.vmdk", f"{base}.mf"]
        data = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    assert data[f"{base}.mf"].decode().splitlines() == [
        f"SHA256({name})= {hashlib.sha256(data[name]).hexdigest()}" for name in (f"{base}.ovf", f"{base}.vmdk")
    ]
    (tmp_path / "disk.vmdk").write_bytes(data[f"{base}.vmdk"])
    run(["qemu-img", "compare", "-f", "raw", "-F", "vmdk", disk, tmp_path / "disk.vmdk"])
    envelope = ET.fromstring(data[f"{base}.ovf"])  # noqa: S314 - written a moment ago
    (file,) = envelope.iter(f"{OVF}File")
    assert file.get(f"{OVF}href") == f"{base}.vmdk"
    assert file.get(f"{OVF}size") == str(len(data[f"{base}.vmdk"]))
    (described,) = envelope.iter(f"{OVF}Disk")
    assert described.get(f"{OVF}capacity") == str(64 << 20)
    assert int(described.get(f"{OVF}populatedSize") or 0) == 8 * 65536
    assert [element.text for element in envelope.iter(f"{OVF}Vendor")] == ["R&D <team>"]
    assert [element.text for element in envelope.iter(f"{OVF}Annotation")] == ['says "hello" & more']
