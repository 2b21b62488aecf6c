"""Component k3s: installed and enabled, with nothing of an identity that the bake could have left."""

from __future__ import annotations

from testinfra.host import Host

from .conftest import Context


def test_k3s_is_the_pinned_version(host: Host, context: Context) -> None:
    assert context.version("k3s") in host.check_output("k3s --version")


def test_k3s_starts_at_boot(root: Host) -> None:
    assert root.service("k3s").is_enabled


def test_images_are_there_before_the_first_start(root: Host) -> None:
    folder = "/var/lib/rancher/k3s/agent/images"
    assert root.file(f"{folder}/k3s-airgap-images.tar.zst").size > 0
    assert root.file(f"{folder}/.cache.json").exists
