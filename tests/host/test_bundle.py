"""`invoke bundle` on the host and `dev-env update` in the guest, on files that stand for the programs."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
import threading
from collections.abc import Callable
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from dev_env import Failure, journal, update
from dev_env import bundle as guest_bundle
from dev_env.bundle import fetched, order, unpacked

from tests.tools import packed, update_bundle
from vmimage import PROJECT
from vmimage.commands.bundle import write_bundle
from vmimage.plan import Plan, make_plan
from vmimage.spec.load import load_spec
from vmimage.util.errors import InputError


def said(line: str) -> None:
    """Take what is reported, and do nothing with it."""


def program(version: str) -> bytes:
    return f"#!/bin/sh\necho tool version {version}\n".encode()


@pytest.fixture
def plan() -> Plan:
    tools = dict.fromkeys(("packer", "qemu-img", "mmdebstrap", "mke2fs", "deflate", "zstandard"), "1.0")
    spec = load_spec(PROJECT / "images.yaml")
    return make_plan(spec, "dev-env", project=PROJECT, tools=tools, today=date(2026, 11, 23))


@pytest.fixture
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with old programs where the guest would have them; k3s is restarted by nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("k3s", "helm"):
        (folder / name).write_bytes(program("v1.0.0"))
        (folder / name).chmod(0o755)
    monkeypatch.setattr(update, "TARGETS", {name: folder / name for name in ("k3s", "helm")})
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("os.chown", lambda *_: None)
    monkeypatch.setattr(update, "DATASTORE", tmp_path / "db")
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "state.db").write_text("old")
    monkeypatch.setattr(journal, "STATE", tmp_path / "state")
    monkeypatch.setattr(update, "_stop", lambda: None)
    monkeypatch.setattr(update, "_start", lambda *_: None)
    return folder


def bundle(path: Path, files: dict[str, bytes], **wrong: str) -> Path:
    return update_bundle(path, files, version="v1.1.0", **wrong)


def test_bundle_holds_the_pins_and_the_guest_takes_it(plan: Plan, tmp_path: Path) -> None:
    files = {pin.name: tmp_path / pin.name for pin in plan.files}
    for name, path in files.items():
        path.write_bytes(name.encode() * 1000)
    pins = tuple(
        pin.__class__(**{**vars(pin), "sha256": hashlib.sha256(files[pin.name].read_bytes()).hexdigest()})
        for pin in plan.files
    )
    digest = write_bundle(plan.__class__(**{**vars(plan), "files": pins}), files, tmp_path / "update.tar", tmp_path)
    assert digest == hashlib.sha256((tmp_path / "update.tar").read_bytes()).hexdigest()
    (tmp_path / "out").mkdir()
    found = unpacked(tmp_path / "update.tar", tmp_path / "out")
    assert {name: version for name, (_, version) in found.items()} == plan.versions
    with pytest.raises(InputError, match="exists"):
        write_bundle(plan, files, tmp_path / "update.tar", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="link exists"):
        write_bundle(plan, files, tmp_path / "link", tmp_path)
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(InputError, match="there is no folder"):
        write_bundle(plan, files, tmp_path / "none" / "update.tar", tmp_path)


def test_programs_are_replaced(targets: Path, tmp_path: Path) -> None:
    path = bundle(tmp_path / "update.tar", {"k3s": program("v1.1.0"), "helm": program("v1.1.0")})
    assert update.update(str(path), "", said) == ["k3s v1.1.0", "helm v1.1.0"]
    assert (targets / "k3s").read_bytes() == program("v1.1.0")
    assert sorted(each.name for each in targets.iterdir()) == ["helm", "k3s"]


def test_all_is_as_before_when_the_cluster_does_not_come_up(
    targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def start(_: Callable[[str], None], seconds: float) -> None:
        starts.append((targets / "k3s").read_bytes())
        if len(starts) == 1:
            assert seconds == 5
            (tmp_path / "db" / "state.db").write_text("what only the new one understands")
            raise Failure("the cluster is not ready")

    monkeypatch.setattr(update, "_start", start)
    path = bundle(tmp_path / "update.tar", {"k3s": program("v1.1.0"), "helm": program("v1.1.0")})
    with pytest.raises(Failure, match="all is as it was before: the cluster is not ready"):
        update.update(str(path), "", said, seconds=5)
    assert (tmp_path / "db" / "state.db").read_text() == "old"
    assert not (tmp_path / ".db.before-update").exists()
    assert starts == [program("v1.1.0"), program("v1.0.0")]
    assert (targets / "helm").read_bytes() == program("v1.0.0")
    assert sorted(each.name for each in targets.iterdir()) == ["helm", "k3s"]


def test_full_disk_changes_nothing(targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copy2

    def full(source: Path, to: Path) -> None:
        if to.name == ".helm.before-update":
            raise OSError("No space left on device")
        copy(source, to)

    monkeypatch.setattr(shutil, "copy2", full)
    path = bundle(tmp_path / "update.tar", {"k3s": program("v1.1.0"), "helm": program("v1.1.0")})
    with pytest.raises(Failure, match="all is as it was before: No space left"):
        update.update(str(path), "", said)
    assert {each.name: each.read_bytes() for each in targets.iterdir()} == dict.fromkeys(
        ("k3s", "helm"), program("v1.0.0")
    )
    assert (tmp_path / "db" / "state.db").read_text() == "old"


def test_cluster_that_does_not_come_up_with_the_old_programs_either_is_told(
    targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> None:
        raise Failure(f"not ready with {(targets / 'k3s').read_text().split()[-1]}")

    monkeypatch.setattr(update, "_start", start)
    path = bundle(tmp_path / "update.tar", {"k3s": program("v1.1.0")})
    with pytest.raises(
        Failure, match=r"failed: not ready with v1\.1\.0\n.* not ready with them: not ready with v1\.0\.0"
    ):
        update.update(str(path), "", said)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: bundle(path, {"k3s": program("v1.1.0")}, k3s="0" * 64), "k3s is not what update.json says"),
        (lambda path: bundle(path, {"k3s": program("v9.9.9")}), "k3s of the bundle says another version than v1.1.0"),
        (lambda path: bundle(path, {"passwd": b"x"}), "is no bundle: it holds passwd"),
        (lambda path: bundle(path, {}), "is no bundle: it holds nothing"),
        (lambda path: path.write_bytes(b"x" * 2000) and path, "is no bundle"),
        (lambda path: path, "there is no file"),
    ],
)
def test_bad_bundle_changes_nothing(make: Callable[[Path], Path], why: str, targets: Path, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=why):
        update.update(str(make(tmp_path / "update.tar")), "", said)
    assert (targets / "k3s").read_bytes() == program("v1.0.0")


def test_bundle_with_another_digest_and_older_programs_are_refused(targets: Path, tmp_path: Path) -> None:
    path = bundle(tmp_path / "update.tar", {"helm": program("v1.1.0")})
    with pytest.raises(Failure, match="is another bundle"):
        update.update(str(path), "0" * 64, said)
    (targets / "helm").write_bytes(program("v2.0.0"))
    with pytest.raises(Failure, match=r"helm v1\.1\.0 is older than v2\.0\.0"):
        update.update(str(path), "", said)
    assert update.update(str(path), "", said, allow_older=True) == ["helm v1.1.0"]


def test_url_needs_a_digest_and_root_is_needed(targets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match="needs --sha256"):
        update.update("https://x.invalid/update.tar", "", said)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Failure, match="only root"):
        update.update("x", "", said)


def index(files: object) -> Callable[[Path], Path]:
    """Return what writes a bundle with an index of some form, and a k3s."""

    def write(path: Path) -> Path:
        path.write_bytes(packed({"update.json": json.dumps({"files": files}).encode(), "k3s": program("v1.1.0")}))
        return path

    return write


def links(*kinds: tuple[str, bytes, str]) -> Callable[[Path], Path]:
    """Return what writes a bundle with members of other kinds: (name, type, target)."""

    def write(path: Path) -> Path:
        bundle(path, {"k3s": program("v1.1.0")})
        with tarfile.open(path, "a") as archive:
            for name, kind, target in kinds:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, target
                archive.addfile(member)
        return path

    return write


def raw(data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write


NO_VERSIONS: tuple[object, ...] = (
    "", "99abc", "1", "v1", "v1.1", "1.1.0", "v1.1.0 ", "v1.1.0\n", "v1.1.x", 1.1, None, [], "tool", "v1.1.0+",
    "v1.1.0-\x1b[2J", "v" + "9" * 5000 + ".1.0",
)  # fmt: skip
DIGEST = hashlib.sha256(program("v1.1.0")).hexdigest()
FACTS = {"version": "v1.1.0", "sha256": DIGEST}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (index([]), "files: a mapping of names is needed"),
        (index(["k3s"]), "files: a mapping of names is needed"),
        (index("k3s"), "files: a mapping of names is needed"),
        (index(None), "files: a mapping of names is needed"),
        (index({"k3s": None}), "is no bundle"),
        (index({"k3s": ["v1.1.0", DIGEST]}), "is no bundle"),
        (index({"k3s": {"version": "v1.1.0"}}), "sha256"),
        (index({"k3s": {**FACTS, "sha256": "0" * 63}}), "sha256: 64 hexadecimal digits"),
        (index({"k3s": {**FACTS, "sha256": 7}}), "sha256: 64 hexadecimal digits"),
        (index({"k3s": FACTS, "helm": FACTS}), "helm is not in it"),
        (index({"../k3s": FACTS}), "it holds ../k3s"),
        *((index({"k3s": {**FACTS, "version": version}}), "is no version such as")
          for version in NO_VERSIONS),
        (raw(packed({"update.json": b"[" * 5000})), "is no bundle"),
        (raw(packed({"update.json": b"{}"})), "is no bundle"),
        (raw(packed({"update.json": b"null"})), "is no bundle"),
        (raw(packed({"update.json": b" " * 100_000})), "update.json has more than 64 KiB"),
        (raw(packed({"k3s": b"x"})), "it has no update.json"),
        (raw(b""), "is no bundle"),
        (raw(bytes(10240)), "is no bundle"),
        (raw(gzip.compress(packed({"update.json": b"{}"}))), "is no bundle"),
        (raw(packed({f"{number}": b"" for number in range(100)})), "holds more than 16 files"),
        (links(("helm", tarfile.SYMTYPE, "helm")), "helm in it is no file"),
        (links(("helm", tarfile.LNKTYPE, "helm")), "helm in it is no file"),
        (links(("helm", tarfile.SYMTYPE, "/etc/shadow")), "helm in it is no file"),
        (links(("update.json", tarfile.SYMTYPE, "update.json")), "update.json in it is no file"),
        (links(("k3s", tarfile.DIRTYPE, "")), "k3s in it is no file"),
        (links(("k3s", tarfile.FIFOTYPE, "")), "k3s in it is no file"),
    ],
)  # fmt: skip
def test_wrong_bundle_is_told_and_changes_nothing(
    make: Callable[[Path], Path], why: str, targets: Path, tmp_path: Path
) -> None:
    path = make(tmp_path / "update.tar")
    with pytest.raises(Failure) as refused:
        update.update(str(path), "", said)
    assert why in str(refused.value)
    assert (targets / "k3s").read_bytes() == program("v1.0.0")
    assert not journal.workspace().exists()


@pytest.mark.parametrize(
    "says", ["", "exit 3", "printf '\\n\\n'", "echo v1.1.01", "echo v1.1.0-rc1", "echo 1.1.0", "kill -9 $$"]
)
def test_program_that_says_another_version_or_none_is_refused(says: str, targets: Path, tmp_path: Path) -> None:
    path = bundle(tmp_path / "update.tar", {"k3s": f"#!/bin/sh\n{says}\n".encode()})
    with pytest.raises(Failure, match=r"says another version than v1\.1\.0|failed"):
        update.update(str(path), "", said)
    assert (targets / "k3s").read_bytes() == program("v1.0.0")


def test_program_here_that_says_nothing_is_replaced_only_when_asked(targets: Path, tmp_path: Path) -> None:
    (targets / "helm").write_bytes(b"#!/bin/sh\n")
    path = bundle(tmp_path / "update.tar", {"helm": program("v1.1.0")})
    with pytest.raises(Failure, match="says no version") as refused:
        update.update(str(path), "", said)
    assert "--allow-older" in refused.value.hint
    assert update.update(str(path), "", said, allow_older=True) == ["helm v1.1.0"]


def test_bundle_of_a_server_has_an_end_and_a_reason(
    targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if self.path == "/cut":
                self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(bytes(3000))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    monkeypatch.setattr(guest_bundle, "BUNDLE_BYTES", 2048)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(Failure, match="has more than 2 KiB") as refused:
            update.update(f"{url}/flood", "0" * 64, said)
        assert "--from FILE" in refused.value.hint
        monkeypatch.undo()
        server.shutdown()
    for wrong in ("http://a b/", "http://[x/", "http://127.0.0.1:9/", "ftp://x/", "http://\x1b/"):
        with pytest.raises(Failure):
            fetched(wrong, "0" * 64, tmp_path)
    with pytest.raises(Failure, match="64 hexadecimal digits"):
        fetched("https://x.invalid/", "sha256:0", tmp_path)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("v1.36.4+k3s1", "v1.36.10+k3s1"),
        ("v1.36.4+k3s1", "v1.36.4+k3s2"),
        ("v1.36.4+k3s9", "v1.36.4+k3s10"),
        ("v3.9.0", "v4.0.0"),
        ("v1.36.3-rc1+k3s1", "v1.36.3+k3s1"),
        ("v1.36.3+k3s1-rc1", "v1.36.3+k3s1"),
        ("v1.36.3-rc1+k3s1", "v1.36.3-rc2+k3s1"),
        ("v1.36.3-rc2+k3s1", "v1.36.3-rc10+k3s1"),
        ("v1.36.2+k3s1", "v1.36.3-rc1+k3s1"),
        ("v4.0.0-alpha.1", "v4.0.0-beta.1"),
        ("v4.0.0-beta.2", "v4.0.0-rc.1"),
        ("v4.0.0-rc.1", "v4.0.0"),
    ],
)
def test_order_of_versions(older: str, newer: str) -> None:
    assert order(older) < order(newer)
    assert not order(newer) < order(older)
