from __future__ import annotations

from pathlib import Path

import yaml

from vmimage import PROJECT
from vmimage.stages.bake.payload import normal_modes, render_templates


def test_templates_are_rendered_into_their_places(tmp_path: Path) -> None:
    template = tmp_path / "etc" / "a.yaml.j2"
    template.parent.mkdir()
    template.write_text("name: {{ image }}\n")
    template.chmod(0o600)
    render_templates(tmp_path, {"image": "x"})
    (made,) = template.parent.iterdir()
    assert (made.name, made.read_text(), made.stat().st_mode & 0o777) == ("a.yaml", "name: x\n", 0o600)


def test_umask_of_the_builder_is_not_in_the_image(tmp_path: Path) -> None:
    for name, mode in (("etc", 0o700), ("etc/tool.conf", 0o600), ("etc/tool", 0o700)):
        path = tmp_path / name
        path.touch() if path.parent != tmp_path else path.mkdir()
        path.chmod(mode)
    (tmp_path / "link").symlink_to("nowhere")
    tmp_path.chmod(0o700)
    normal_modes(tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path, *tmp_path.rglob("*")) if path.exists()}
    assert modes == {tmp_path.name: 0o755, "etc": 0o755, "tool.conf": 0o644, "tool": 0o755}


def test_settings_of_k3s_are_rendered_for_the_image(tmp_path: Path) -> None:
    settings = PROJECT / "provision/files/50-k3s/etc/rancher/k3s/config.yaml.j2"
    copy = tmp_path / settings.name
    copy.write_text(settings.read_text())
    render_templates(tmp_path, {"image": "dev-env"})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["node-name"] == "dev-env"
