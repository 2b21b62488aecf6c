"""The user's kubeconfig: broken, large, locked; and what stays of it as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from tests.unit.test_kubeconfig import OURS
from vmimage.access import kubeconfig_file
from vmimage.access.kubeconfig_entries import excerpt, merged, removed
from vmimage.access.kubeconfig_file import KEPT_BACKUPS, chosen_file, locked, read, text_of, write
from vmimage.util.errors import HostError, InputError
from vmimage.util.run import orderly_signals

SERVER = "https://127.0.0.1:6443"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "is not YAML"),
        ("clusters: [1]", "clusters is not a list"),
        ("[]", "is not a mapping"),
        ("clusters: 5", "clusters is not a list"),
        ("clusters: text", "clusters is not a list"),
        ("contexts: [{name: a, context: text}]", "contexts is not a list"),
        ("users: [{name: [a]}]", "users is not a list"),
        ("a: !!int x", "is not YAML"),
        ("a: !!float x", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: 1\na: 2", "is not YAML"),
    ],
    ids=["open", "section", "list", "number", "text", "inner", "name", "int", "float", "deep", "twice"],
)
def test_broken_file_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(InputError, match=why):
        read(tmp_path / "config")


def test_absent_file_is_made_for_its_user_only(tmp_path: Path) -> None:
    path = tmp_path / "config"
    assert read(path) == {}
    assert write(path, merged({}, OURS)) is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(path) == merged({}, OURS)


def test_backup_is_what_was_there_and_old_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "config"
    for day in range(KEPT_BACKUPS + 2):
        (tmp_path / f"config.vmimage-2020010{day}-000000").write_text("old")
    path.write_text("# mine\nkind: Config\n")
    path.chmod(0o640)
    backup = write(path, {"kind": "Config"})
    assert backup
    assert backup.read_text() == "# mine\nkind: Config\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert len(list(tmp_path.glob("config.vmimage-*"))) == KEPT_BACKUPS


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeconfig_file, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(kubeconfig_file, "LOOK_SECONDS", 0.005)


def test_own_locks_of_killed_ones_go_and_other_files_stay(tmp_path: Path) -> None:
    ours = (".config.lock.99", ".config.lock.ab_3x9z0")
    others = ((".config.lock.98", "mine"), (".config.lock.x", "vmimage"))
    for name, text in (*((name, "vmimage 99\n") for name in ours), *others):
        (tmp_path / name).write_text(text)
    with locked(tmp_path / "config"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".config.lock.98", ".config.lock.x"]


def test_lock_is_held_by_one_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "config"
    with locked(path), pytest.raises(HostError, match="is held by another program: another `invoke kubeconfig`"):  # noqa: SIM117
        with locked(path):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [b"", b"vm", b"\xff" * 5000], ids=["kubectl", "cut short", "binary"])
def test_lock_of_kubectl_is_respected_and_the_way_out_told(text: bytes, tmp_path: Path) -> None:
    lock = tmp_path / "config.lock"
    lock.write_bytes(text)
    with pytest.raises(HostError, match=r"config\.lock is held by another program, since 20") as refused:  # noqa: SIM117
        with locked(tmp_path / "config"):
            pass
    assert f"rm '{lock}'" in refused.value.hint
    assert lock.read_bytes() == text


def test_lock_that_is_no_file_is_told(tmp_path: Path) -> None:
    for make in (Path.mkdir, os.mkfifo, lambda lock: lock.symlink_to("none")):
        lock = tmp_path / "config.lock"
        make(lock)
        with pytest.raises(HostError, match="is held by another program"), locked(tmp_path / "config"):
            pass
        lock.rmdir() if lock.is_dir() else lock.unlink()


def test_lock_of_a_dead_owner_is_taken_over_by_one(tmp_path: Path) -> None:
    lock = tmp_path / "config.lock"
    inside, faults = threading.Semaphore(1), list[str]()

    def take() -> None:
        with contextlib.suppress(HostError), locked(tmp_path / "config"):
            if not inside.acquire(blocking=False):
                faults.append("two at once")
            time.sleep(0.002)
            inside.release()

    for _ in range(8):
        lock.write_bytes(b"vmimage 1\n")
        threads = [threading.Thread(target=take) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert not list(tmp_path.iterdir())


def test_lock_where_files_have_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    test_lock_is_held_by_one_and_goes_with_it(tmp_path)


def test_lock_of_a_link_is_that_of_the_file_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with locked(tmp_path / "link"):
        assert {path.name for path in tmp_path.iterdir()} == {"link", "link.lock", "real.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"link"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_leaves_no_lock_and_the_file_as_it_was(number: int, tmp_path: Path) -> None:
    # A shell in the background ignores it for its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    path = tmp_path / "config"
    path.write_text(BY_HAND)
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    with pytest.raises((SystemExit, KeyboardInterrupt)), orderly_signals(), locked(path):
        time.sleep(9)
    signal.signal(signal.SIGINT, before)
    assert [each.name for each in tmp_path.iterdir()] == ["config"]
    assert path.read_text() == BY_HAND


def test_file_is_the_one_kubectl_writes(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    assert chosen_file(None, {}, tmp_path) == tmp_path / ".kube" / "config"
    assert chosen_file(None, {"KUBECONFIG": f"{one}:{two}"}, tmp_path) == two
    one.touch()
    assert chosen_file(None, {"KUBECONFIG": f"{one}:{two}"}, tmp_path) == one
    assert chosen_file(str(two), {"KUBECONFIG": "x"}, tmp_path) == two
    for no_file in ("/dev/null", str(tmp_path)):
        with pytest.raises(InputError, match="is no file"):
            chosen_file(None, {"KUBECONFIG": no_file}, tmp_path)


def test_link_stays_one_and_the_file_keeps_its_mode_and_ends_of_lines(tmp_path: Path) -> None:
    real, link = tmp_path / "there" / "real", tmp_path / "config"
    real.parent.mkdir()
    real.write_bytes(BY_HAND.replace("\n", "\r\n").encode())
    real.chmod(0o640)
    link.symlink_to("there/real")
    backup = write(link, merged(read(link), OURS))
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert b"\r\n- name: work  # behind the VPN\r\n" in real.read_bytes()
    assert backup
    assert (backup.parent, backup.stat().st_mode & 0o777) == (real.parent, 0o640)
    assert read(link) == merged(read(backup), OURS)


def test_link_to_what_is_not_there_yet_and_in_a_circle(tmp_path: Path) -> None:
    link = tmp_path / "config"
    link.symlink_to("later/real")
    with locked(link):
        write(link, merged(read(link), OURS))
    assert read(tmp_path / "later" / "real") == merged({}, OURS)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "circle")


def test_backups_of_one_second_are_two_and_files_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "config"
    others = [tmp_path / name for name in ("config.vmimage-mine", "config.vmimage-20200101-000000.txt")]
    for other in others:
        other.write_text("mine")
    kept = []
    for number in range(KEPT_BACKUPS + 6):
        path.write_text(f"# {number}\n")
        kept.append(write(path, {}))
    assert len(set(kept)) == len(kept)
    assert [backup for backup in kept if backup and backup.exists()] == kept[-KEPT_BACKUPS:]
    assert all(other.read_text() == "mine" for other in others)


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 13))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "line 6: more than 20000 values"),
        (BOMB.replace("[x]", "{a: x}").replace("[*", "{b: [*").replace("]\n", "]}\n"), "line 5: more than 20000"),
        ("clusters: &a [*a]", r"line 1: \*a is a part of itself"),
        ("a: &a {<<: *a}", r"\*a is a part of itself"),
        ("- a\n" * 30000, "line 20000: more than 20000 values"),
        ("a: " + "[" * 60, "more than 50 lists"),
        ("a: b\x00", "is not YAML"),
        ("a: *none", "is not YAML"),
        ("x" * (5 << 20), "is larger than 4 MiB"),
        ("\udcff", "cannot be read"),
    ],
    ids=["bomb", "bomb of mappings", "itself", "merged", "many", "deep", "null", "alias", "large", "no text"],
)
def test_what_nobody_writes_is_refused_at_once_and_stays(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    data = text.encode(errors="surrogateescape")
    path.write_bytes(data)
    started = time.process_time()
    with pytest.raises(InputError, match=why) as refused:
        read(path)
    assert time.process_time() - started < 2
    assert refused.value.hint
    assert path.read_bytes() == data


def test_large_file_of_many_clusters_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "config"
    entries = [
        {"name": f"c{number}", "cluster": {"server": "https://x", "certificate-authority-data": "A" * 4000}}
        for number in range(20)
    ]
    path.write_text(yaml.safe_dump({"kind": "Config", "clusters": entries}, width=1 << 20))
    started = time.process_time()
    present = read(path)
    wanted = merged(present, OURS)
    assert text_of(excerpt(wanted, "dev-env")) != text_of(excerpt(present, "dev-env"))
    write(path, wanted)
    assert time.process_time() - started < 2
    assert path.read_text().count("A" * 4000) == len(entries)


def test_pipe_is_no_kubeconfig(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config")
    assert read(tmp_path / "config") == {}, "it does not wait"
    with pytest.raises(InputError, match="is no file"):
        chosen_file(str(tmp_path / "config"), {}, tmp_path)


def test_order_of_keys_stays(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("users: []\nkind: Config\nclusters: []\ncontexts: []\n")
    write(path, merged(read(path), OURS))
    assert list(yaml.safe_load(path.read_text())) == ["users", "kind", "clusters", "contexts", "current-context"]


BY_HAND = """\
# mine
apiVersion: v1
kind: Config
clusters:
- name: work  # behind the VPN
  cluster:
    server: 'https://192.0.2.1'
    insecure-skip-tls-verify: yes
# the people
users:
- name: work
  user: {token: "0123"}
contexts: []
current-context: work
"""


def test_what_its_user_wrote_stays_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(BY_HAND)
    write(path, merged(read(path), OURS))
    lines = path.read_text().splitlines()
    assert [line for line in BY_HAND.splitlines() if line not in lines] == ["contexts: []"]
    assert read(path)["contexts"] == OURS["contexts"]
    write(path, removed(read(path), "dev-env", SERVER))
    assert path.read_text() == BY_HAND
