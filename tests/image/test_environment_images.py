"""Component environment: container images are loaded from files, stay there, and come back when they went.

The tests run in the order of this file: what one leaves, the next one finds.
"""

from __future__ import annotations

import json
from typing import Any

from testinfra.host import Host

INDEX = "/var/lib/dev-env/images.json"
# An image of one static program, as `docker save` writes it.
MAKE = """set -eu
work=$(mktemp -d)
mkdir -p "$work/root/bin"
cp /usr/bin/busybox "$work/root/bin/"
cd "$work"
echo %s > root/note
tar --owner=0 --group=0 -cf layer.tar -C root .
layer=$(sha256sum layer.tar | cut -d ' ' -f 1)
printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["busybox","sleep","1d"],"Env":["PATH=/bin"]},
"rootfs":{"type":"layers","diff_ids":["sha256:'$layer'"]}}' > config.json
printf '[{"Config":"config.json","RepoTags":["'%s'"],"Layers":["layer.tar"]}]' > manifest.json
tar -cf %s manifest.json config.json layer.tar
"""
LOADED, BY_HAND = "my.example/shop:1", "my.example/other:1"


def images(host: Host) -> dict[str, dict[str, Any]]:
    """Return name -> image, as Kubernetes sees it."""
    found = json.loads(host.check_output("sudo k3s crictl images --output=json"))["images"]
    return {name: image for image in found for name in image.get("repoTags") or []}


def brought(host: Host) -> set[str]:
    """Return the names of the images that the machine brings."""
    return {name for facts in json.loads(host.file(INDEX).content_string).values() for name in facts["names"]}


def test_pods_do_not_start_before_the_images_that_all_of_them_need(root: Host) -> None:
    archives = json.loads(root.file(INDEX).content_string)
    # k3s does not wait for the one that it imports last; without a pause image, each pod is tried again and again.
    assert not [name for name in archives[max(archives)]["names"] if "mirrored-pause" in name]
    assert archives[max(archives)]["bytes"] < 16 << 20
    log = root.run("journalctl -b --quiet -o cat -u k3s | grep 'failed to get sandbox image' | head -3")
    assert log.stdout == ""


def test_images_that_the_machine_brings_are_there_and_pinned(host: Host) -> None:
    found, names = images(host), brought(host)
    assert "localhost/hello:1" in names
    assert [name for name in names if "mirrored-pause" in name]
    assert {name: found.get(name, {}).get("pinned") for name in names} == dict.fromkeys(names, True)


def test_loaded_image_outlives_the_removal_of_what_nothing_uses(host: Host) -> None:
    host.check_output(MAKE, "first", LOADED, "/home/dev/shop.tar")
    done = host.run("dev-env images load /home/dev/shop.tar")
    assert (done.rc, done.stdout.strip()) == (0, LOADED), done.stderr
    assert " MiB, " in done.stderr, "how far it is"
    host.check_output(MAKE, "by hand", BY_HAND, "/home/dev/other.tar")
    host.check_output("sudo k3s ctr --namespace=k8s.io images import /home/dev/other.tar")
    said = host.check_output("dev-env images prune")
    assert BY_HAND in said
    assert LOADED not in said
    assert BY_HAND in images(host), "without --remove it is only told"
    host.check_output("sudo k3s crictl rmi --prune")
    left = images(host).keys()
    assert BY_HAND not in left
    assert {LOADED, *brought(host)} <= left


def test_other_image_of_the_same_name_is_told_and_pinned(host: Host) -> None:
    before = images(host)[LOADED]["id"]
    host.check_output(MAKE, "second", LOADED, "/home/dev/shop.tar")
    assert host.check_output("dev-env images load /home/dev/shop.tar") == LOADED
    now = images(host)[LOADED]
    assert now["id"] != before
    assert now["pinned"]
    assert host.check_output("dev-env images load /home/dev/shop.tar") == LOADED, "the same again"


def test_what_nothing_uses_is_removed_when_asked(host: Host) -> None:
    host.check_output("sudo k3s ctr --namespace=k8s.io images import /home/dev/other.tar")
    done = host.run("dev-env images prune --remove")
    assert done.rc == 0, done.stderr
    assert "removed: " in done.stdout
    left = images(host).keys()
    assert BY_HAND not in left
    assert LOADED in left


def test_what_is_no_archive_is_told(host: Host) -> None:
    done = host.run("dev-env images load /etc/hostname")
    assert done.rc == 1
    assert "/etc/hostname could not be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_pause_image_that_went_is_named_and_brought_back(host: Host) -> None:
    (pause,) = [name for name in brought(host) if "mirrored-pause" in name]
    host.check_output("sudo k3s crictl rmi %s", pause)
    done = host.run("dev-env doctor")
    assert done.rc == 1
    assert f"BAD the images that the machine brings are there: gone: {pause}" in done.stdout
    assert "dev-env doctor --fix" in done.stdout
    mended = host.run("dev-env doctor --fix")
    assert mended.rc == 0, mended.stdout + mended.stderr
    assert images(host)[pause]["pinned"]
    # No pod starts without it.
    host.check_output("dev-env up hello")
    host.check_output("dev-env down")
