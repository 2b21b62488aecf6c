"""The tests' stand-in for k3s: what it decides, without a network."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.k3s_stand_in.program import containers, dns, image_tools, ingress
from tests.k3s_stand_in.program.admission import admit
from tests.k3s_stand_in.program.containers import NotYet, Runtime
from tests.k3s_stand_in.program.controllers import settle
from tests.k3s_stand_in.program.images import Images
from tests.k3s_stand_in.program.kubelet import Kubelet, lateness
from tests.k3s_stand_in.program.network import NoNetwork
from tests.k3s_stand_in.program.objects import Objects, Refused
from tests.k3s_stand_in.program.parts import Facts, first_objects
from tests.k3s_stand_in.program.services import Backend, backends, is_ready
from tests.tools import image_archive

PAUSE = "docker.io/rancher/mirrored-pause:3.6"
HELLO = "localhost/hello:1"
LATER = 1_700_000_000


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    """A new cluster, with a service in it."""
    made = Objects(tmp_path / "state.json")
    first_objects(made, Facts("node", "192.0.2.1", frozenset(), 80, ("10.43.0.10", 53)))
    add(
        made, "services", "shop", {"selector": {"a": "b"}, "ports": [{"name": "web", "port": 80, "targetPort": "http"}]}
    )
    return made


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """The images of two archives of the agent."""
    folder = tmp_path / "agent" / "images"
    folder.mkdir(parents=True)
    (folder / ".cache.json").touch()
    (folder / "k3s.tar.gz").write_bytes(gzip.compress(image_archive({PAUSE: [], "rancher/other:1": []})))
    layers = [{"bin/tool": b"old", "www/page": b"page"}, {"www/.wh.page": b"", "bin/tool": b"new"}]
    (folder / "hello.tar").write_bytes(image_archive({HELLO: layers}, Cmd=["tool"], Env=["PATH=/bin"]))
    for path in folder.glob("*.tar*"):
        os.utime(path, (0, 0))
    found = Images(tmp_path)
    found.import_all()
    return found


@pytest.fixture
def kubelet(objects: Objects, images: Images, tmp_path: Path) -> Kubelet:
    """A kubelet without a network, whose runtime has started."""
    made = Kubelet(objects, NoNetwork(), Runtime(tmp_path, images), tmp_path, late={"metrics-server": float("inf")})
    made.runtime.start()
    return made


def add(objects: Objects, resource: str, name: str, spec: dict[str, Any], **meta: Any) -> dict[str, Any]:
    """Store an object in the namespace default, as the API does."""
    kind = {"services": "Service", "pods": "Pod", "deployments": "Deployment", "ingresses": "Ingress"}[resource]
    key = (resource, "default", name)
    found = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "default", **meta}, "spec": spec}
    admit(objects, key, found)
    objects.put(key, found)
    settle(objects, key)
    return objects.get(key)


def deployment(image: str = "rancher/unknown:1") -> dict[str, Any]:
    container = {"name": "page", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
    return {"selector": {"matchLabels": {"a": "b"}}, "template": template}


def question(name: str, kind: int = dns.A) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, dns.IN)


@pytest.mark.parametrize(
    ("name", "code", "count"),
    [
        ("kubernetes.default.svc.cluster.local", dns.NO_ERROR, 1),
        ("SHOP.default.svc.cluster.local", dns.NO_ERROR, 1),
        ("none.default.svc.cluster.local", dns.NO_NAME, 0),
        ("example.com", dns.REFUSED, 0),
    ],
)
def test_names_of_services_are_answered(objects: Objects, name: str, code: int, count: int) -> None:
    reply = dns.answer(objects, question(name))
    number, flags, questions, answers = struct.unpack_from("!HHHH", reply)
    assert (number, flags & 0x800F, questions, answers) == (7, 0x8000 | code, 1, count)
    if count:
        assert reply[-6:-3] == b"\0\x04\x0a", "four bytes, 10.…"


def test_what_is_no_question_is_no_fault(objects: Objects) -> None:
    assert dns.answer(objects, b"short") == b""
    assert dns.answer(objects, question("a")[:-3])[3] & 15 == dns.FORMAT_ERROR
    ipv6 = dns.answer(objects, question("shop.default.svc.cluster.local", kind=28))
    assert (ipv6[3] & 15, ipv6[7]) == (dns.NO_ERROR, 0), "the name is there, without such an address"


def test_layers_lie_one_over_the_other(images: Images) -> None:
    image = images.find(HELLO)
    assert image
    assert image.config == {"Cmd": ["tool"], "Env": ["PATH=/bin"]}
    assert (images.layers(image) / "bin/tool").read_bytes() == b"new"
    assert list((images.layers(image) / "www").iterdir()) == []


def test_archive_is_taken_in_once_and_what_it_brought_is_pinned(
    images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.tar").write_bytes(image_archive({"mine": [{"a": b"b"}]}))
    image_tools.ctr(tmp_path, ["-n", "k8s.io", "images", "import", str(tmp_path / "mine.tar")])
    image_tools.ctr(tmp_path, ["--namespace=k8s.io", "images", "ls"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]
    labels = {line[0]: line[-1] for line in lines}
    assert labels["docker.io/library/mine:latest"] == "io.cri-containerd.image=managed"
    assert (
        labels[PAUSE] == "io.cattle.k3s.pinned=pinned,io.cri-containerd.image=managed,io.cri-containerd.pinned=pinned"
    )
    image_tools.crictl(tmp_path, ["rmi", "--prune"])
    assert capsys.readouterr().out == "Deleted: docker.io/library/mine:latest\n"
    image_tools.ctr(tmp_path, ["images", "rm", PAUSE])
    assert images.lacks_pause()
    images.import_all()
    assert images.lacks_pause()


def test_prune_removes_what_no_container_uses_and_nobody_pinned(
    images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images.import_archive(image_archive({name: [] for name in ("used", "pinned", PAUSE)}))
    used = images.find("used")
    assert used
    (tmp_path / image_tools.CONTAINERS).write_text(json.dumps([{"id": "1", "imageRef": used.id}]))
    image_tools.ctr(tmp_path, ["images", "label", "docker.io/library/pinned:latest", "io.cri-containerd.pinned=pinned"])
    image_tools.crictl(tmp_path, ["rmi", "--prune"])
    capsys.readouterr()
    image_tools.crictl(tmp_path, ["images", "-o", "json"])
    found = {tuple(each["repoTags"]): each for each in json.loads(capsys.readouterr().out)["images"]}
    assert {tags: each["pinned"] for tags, each in found.items()} == {
        (HELLO,): True,
        ("docker.io/library/pinned:latest",): True,
        ("docker.io/library/used:latest",): False,
        ("docker.io/rancher/other:1",): True,
    }
    image_tools.crictl(tmp_path, ["rmi", str(found[HELLO,]["id"])])
    assert images.find(HELLO) is None
    assert list((tmp_path / "agent/containerd/layers").iterdir()) == []


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(SystemExit, match="ctr: unrecognized image format"):
        image_tools.ctr(tmp_path, ["images", "import", str(tmp_path / "file")])


@pytest.mark.parametrize(
    ("mount", "refused"),
    [
        ({"recursiveReadOnly": "Disabled", "mountPropagation": "HostToContainer"}, ""),
        ({"recursiveReadOnly": "IfPossible", "readOnly": True}, ""),
        ({"recursiveReadOnly": "Enabled"}, "readOnly is true"),
        (
            {"recursiveReadOnly": "IfPossible", "readOnly": True, "mountPropagation": "HostToContainer"},
            "mountPropagation",
        ),
    ],
)
def test_recursive_read_only_goes_with_no_propagation(objects: Objects, mount: dict[str, Any], refused: str) -> None:
    spec = deployment()
    spec["template"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "a", "mountPath": "/a", **mount}]
    if not refused:
        add(objects, "deployments", "x", spec)
        return
    with pytest.raises(Refused, match=refused) as told:
        add(objects, "deployments", "x", spec)
    place = 'Deployment.apps "x" is invalid: spec.template.spec.containers[0].volumeMounts[0].recursiveReadOnly: '
    assert str(told.value).startswith(place)
    assert told.value.code == 422


def test_pods_are_well_and_counted_but_for_those_that_are_late(kubelet: Kubelet) -> None:
    objects = kubelet.objects
    add(objects, "deployments", "page", deployment())
    (service,) = [each for each in objects.find("services") if each["metadata"]["name"] == "shop"]
    assert backends(objects, service, service["spec"]["ports"][0]) == []
    kubelet.sync()
    (end,) = backends(objects, service, service["spec"]["ports"][0])
    assert end == Backend(objects.get(("pods", "default", "page-0"))["status"]["podIP"], 8080, simulated=True)
    available = {each["metadata"]["name"]: each["status"]["availableReplicas"] for each in objects.find("deployments")}
    assert available.pop("metrics-server") == 0
    assert set(available.values()) == {1}
    assert lateness("metrics-server, traefik=20") == {"metrics-server": float("inf"), "traefik": 20.0}


def test_no_new_pod_starts_without_the_image_of_pause(kubelet: Kubelet) -> None:
    kubelet.sync()
    with kubelet.runtime.images.changing() as found:
        del found[PAUSE]
    add(kubelet.objects, "deployments", "page", deployment())
    kubelet.sync()
    status = kubelet.objects.get(("pods", "default", "page-0"))["status"]
    assert status["containerStatuses"][0]["state"]["waiting"]["reason"] == "ContainerCreating"
    assert is_ready(kubelet.objects.get(("pods", "kube-system", "coredns-0"))), "it ran before"
    kubelet.runtime.images.import_archive(image_archive({PAUSE: []}))
    kubelet.sync()
    assert is_ready(kubelet.objects.get(("pods", "default", "page-0")))


def test_pods_start_while_the_last_archive_by_name_is_imported(objects: Objects, tmp_path: Path) -> None:
    folder = tmp_path / "agent" / "images"
    folder.mkdir(parents=True)
    (folder / "a.tar").write_bytes(image_archive({HELLO: []}))
    (folder / "b.tar").write_bytes(image_archive({PAUSE: []}))
    images, seen = Images(tmp_path), list[bool]()
    images.import_all(lambda: seen.extend((bool(images.find(HELLO)), images.lacks_pause())))
    assert seen == [True, True]
    assert not images.lacks_pause()
    (folder / "c.tar").write_bytes(image_archive({"mine": []}))
    images = Images(tmp_path / "other")
    images.archives = folder
    images.import_all(lambda: seen.append(images.lacks_pause()))
    assert seen[2:] == [False]


def test_archive_of_a_fraction_of_a_second_is_imported_at_every_start(
    images: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    """As k3s v1.36.3 was seen to do."""
    whole, fraction = images.archives / "hello.tar", images.archives / "k3s.tar.gz"
    os.utime(whole, ns=(0, LATER * 10**9))
    os.utime(fraction, ns=(0, LATER * 10**9 + 10**8))
    told = []
    for _ in range(2):
        Images(images.archives.parents[1]).import_all()
        told.append(capsys.readouterr().err)
    assert f"Importing images from {fraction}" in told[1]
    assert str(whole) not in told[1]


def test_another_template_and_a_deleted_pod_make_a_new_one(kubelet: Kubelet) -> None:
    add(kubelet.objects, "deployments", "page", deployment())
    kubelet.sync()
    before = kubelet.objects.get(("pods", "default", "page-0"))["metadata"]["uid"]
    add(kubelet.objects, "deployments", "page", deployment("rancher/unknown:2"))
    pod = kubelet.objects.get(("pods", "default", "page-0"))
    assert pod["metadata"]["uid"] != before
    assert not is_ready(pod)


def test_container_has_the_mounts_the_user_and_the_command_of_its_pod(
    objects: Objects, images: Images, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    objects.put(("configmaps", "default", "page"), {"metadata": {"name": "page"}, "data": {"index.html": "hello"}})
    volumes = [
        {"name": "src", "hostPath": {"path": str(tmp_path), "type": "Directory"}},
        {"name": "page", "configMap": {"name": "page"}},
    ]
    container: dict[str, Any] = {
        "name": "page",
        "args": ["-f"],
        "volumeMounts": [
            {"name": "src", "mountPath": "/src", "readOnly": True, "mountPropagation": "HostToContainer"},
            {"name": "page", "mountPath": "/page", "readOnly": True, "recursiveReadOnly": "IfPossible"},
        ],
    }
    pod = add(
        objects, "pods", "p", {"containers": [container], "volumes": volumes, "securityContext": {"runAsUser": 9}}
    )
    sources = containers.volumes(objects, pod, tmp_path / "volumes")
    assert (sources["page"] / "index.html").read_text() == "hello"
    words = containers.mounts(container, sources, tmp_path / "root")
    assert words[:8] == [str(tmp_path), "/src", "slave", "ro", str(sources["page"]), "/page", "private", "rro"]
    image = images.find(HELLO)
    assert image
    root = tmp_path / "root"
    assert containers.command(pod, container, image, root)[-6:] == [
        "PATH=/bin", "/usr/sbin/chroot", "--userspec=9:0", "--groups=", str(root), "-f"]  # fmt: skip
    volumes[0]["hostPath"] = {"path": f"{tmp_path}/none", "type": "Directory"}
    with pytest.raises(NotYet, match="none is not a directory"):
        containers.volumes(objects, {**pod, "spec": {"volumes": volumes}}, tmp_path / "volumes")


def test_host_and_path_lead_to_a_service(objects: Objects) -> None:
    def path(prefix: str, service: str) -> dict[str, Any]:
        return {"path": prefix, "backend": {"service": {"name": service, "port": {"number": 80}}}}

    paths = [path("/", "shop"), path("/api", "none")]
    add(objects, "ingresses", "shop", {"rules": [{"host": "shop.localhost", "http": {"paths": paths}}]})
    assert ingress.led_to(objects, "shop.localhost", "/page") == ("default/shop", [])
    assert ingress.led_to(objects, "shop.localhost", "/api/x") is None, "there is no such service"
    assert ingress.led_to(objects, "other.localhost", "/") is None
