"""An update of the guest that is cut off: killed at every step, it leaves the old or the new, and it is known which.

A step is an operation on a file, as Python's audit events tell them; the process dies before it is done.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dev_env import Failure, archives, durable, journal, update

OLD, NEW = "v1.0.0", "v1.1.0"
STEPS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.symlink",
         "shutil.copyfile", "shutil.copytree", "shutil.rmtree")  # fmt: skip
State = dict[str, str]
# A hook cannot be taken away again: this one does nothing but in a child.
_left: list[int] = []
_root = ""


def _step(event: str, args: tuple[object, ...]) -> None:
    if not _left or event not in STEPS or not str(args[0]).startswith(_root):
        return
    if event == "open" and not isinstance(args[2], int):
        return
    if event == "open" and not int(str(args[2])) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        return
    _left[0] -= 1
    if not _left[0]:
        os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(_step)


class Machine:
    """Old files where the guest would have them, and newer ones to replace them with."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.places = {name: root / "bin" / name for name in ("k3s", "kubectl", "helm")}
        self.places["k3s-airgap-images"] = root / "images" / "k3s-airgap-images.tar.zst"
        monkeypatch.setattr(journal, "STATE", root / "state")
        monkeypatch.setattr(archives, "INDEX", root / "state" / "images.json")
        monkeypatch.setattr(archives, "index", lambda: durable.write(archives.INDEX, NEW))
        monkeypatch.setattr(update, "TARGETS", self.places)
        monkeypatch.setattr(update, "DATASTORE", root / "db")
        monkeypatch.setattr(update, "run", lambda *_, **__: "")
        monkeypatch.setattr(update, "_runs", lambda: False)
        monkeypatch.setattr(update, "wait", lambda *_: self.k3s_writes())
        monkeypatch.setattr("os.geteuid", lambda: 0)
        monkeypatch.setattr("os.chown", lambda *_: None)

    def fill(self) -> None:
        """Make all as it is before an update."""
        durable.remove(self.root)
        for folder in ("bin", "images", "db/snapshots", "state", "new"):
            (self.root / folder).mkdir(parents=True)
        for name, place in self.places.items():
            # No helm is there before; kubectl is a link, as an image without a kubectl of its own has it.
            if name == "kubectl":
                place.symlink_to("k3s")
            elif name != "helm":
                place.write_text(OLD)
            (self.root / "new" / name).write_text(NEW)
        archives.INDEX.write_text(OLD)
        self.k3s_writes()

    def k3s_writes(self) -> None:
        """Let the k3s that is there write into its datastore."""
        (self.root / "db" / "snapshots" / self.places["k3s"].read_text()).touch()
        (self.root / "db" / "state.db").write_text(f"written by {self.places['k3s'].read_text()}")

    def state(self) -> State:
        """Return all that is there, but for what the update was made from."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if name.startswith("new") or name == "state/update.lock":
                continue
            kind = "link to " + str(path.readlink()) if path.is_symlink() else "" if path.is_file() else "folder"
            found[name] = kind or path.read_text()
        return found

    def replace(self) -> None:
        """Do what `dev-env update` does once its bundle is unpacked."""
        with journal.locked():
            update.replace({name: self.root / "new" / name for name in self.places}, lambda _: None, 1)


def killed_at(step: int, act: Callable[[], object], root: Path) -> bool:
    """Do something in a process that dies at its nth step; tells whether it did, or came to its end before."""
    global _root  # noqa: PLW0603 - the hook has no other way to know
    child = os.fork()
    if not child:
        _root = str(root)
        _left.append(step)
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL loses nothing that was written; it is the power-off that does."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path / "root", monkeypatch)
    made.fill()
    return made


def mend(*, starting: bool = False) -> None:
    update.recover(lambda _: None, starting=starting)


@pytest.mark.usefixtures("no_fsync")
def test_killed_at_every_step_it_leaves_the_old_or_the_new(machine: Machine) -> None:
    old = machine.state()
    machine.replace()
    new = machine.state()
    assert new["bin/helm"] == new["bin/k3s"] == new["state/images.json"] == NEW
    assert not machine.places["k3s-airgap-images"].stat().st_mtime_ns % 10**9, "or k3s imports it at every start"
    assert not [name for name in new if "before-update" in name or name.endswith((".new", "update.json"))]
    outcomes = []
    for step in range(1, 1000):
        machine.fill()
        if not killed_at(step, machine.replace, machine.root):
            break
        mend(starting=step % 2 == 0)
        outcomes.append("old" if machine.state() == old else "new" if machine.state() == new else f"step {step}: mixed")
    # First the one, then the other, and nothing else.
    last_old = outcomes.index("new")
    assert set(outcomes[:last_old]) == {"old"}
    assert set(outcomes[last_old:]) == {"new"}
    assert len(outcomes) > 50


@pytest.mark.usefixtures("no_fsync")
def test_mending_that_is_killed_is_done_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    old = machine.state()

    def die(*_: object) -> None:
        machine.k3s_writes()
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(update, "wait", die)
    for step in range(1, 1000):
        machine.fill()
        assert killed_at(-1, machine.replace, machine.root), "while it waits for the cluster"
        assert machine.state()["db/state.db"] == f"written by {NEW}"
        ended = not killed_at(step, mend, machine.root)
        mend()
        assert machine.state() == old, f"step {step}"
        if ended:
            break
    assert step > 10


def test_what_is_killed_twice_is_still_the_old(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second try may not take the first one's new files for old ones."""
    old = machine.state()

    def die(*_: object) -> None:
        machine.k3s_writes()
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(update, "wait", die)
    assert killed_at(-1, machine.replace, machine.root)
    assert machine.places["k3s"].read_text() == NEW

    def fails(*_: object) -> None:
        raise Failure("the cluster is not ready")

    monkeypatch.setattr(update, "fetched", fails)
    with pytest.raises(Failure, match="not ready"):
        update.update("bundle.tar", "", lambda _: None)
    assert machine.state() == old


def test_backup_without_a_journal_is_never_overwritten(machine: Machine) -> None:
    backup = journal.backup_of(machine.places["k3s"])
    backup.write_text("the only one")
    with pytest.raises(Failure, match="an update was cut off") as refused:
        machine.replace()
    assert backup.read_text() == "the only one"
    assert machine.places["k3s"].read_text() == OLD
    assert str(backup) in refused.value.hint


def test_backups_are_on_the_disk_before_anything_is_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    seen: dict[str, list[str]] = {}
    fsync, write = os.fsync, durable.write

    def noted(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()).removeprefix(f"{machine.root}/"))
        fsync(handle)

    def writes(path: Path, text: str) -> None:
        if path == journal.path():
            seen[json.loads(text)["stage"]] = list(synced)
        write(path, text)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(durable, "write", writes)
    machine.replace()
    assert {"bin/.k3s.before-update", "bin", ".db.before-update/state.db", ".db.before-update/snapshots"} <= set(
        seen["replacing"]
    )
    assert {"state/.update.json.new", "state"} <= set(seen["replacing"]), "the journal itself"
    assert {"bin/.k3s.new", "bin/.helm.new", "images/.k3s-airgap-images.tar.zst.new"} <= set(seen["done"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_signal_puts_the_old_ones_back(
    machine: Machine, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = machine.state()
    waits = iter([True])

    def signalled(*_: object) -> None:
        if next(waits, False):
            machine.k3s_writes()
            os.kill(os.getpid(), number)
            time.sleep(5)

    monkeypatch.setattr(update, "wait", signalled)
    before = signal.getsignal(number)
    with pytest.raises(Failure, match=f"all is as it was before: it was interrupted \\({number.name}\\)"):
        machine.replace()
    assert machine.state() == old
    assert signal.getsignal(number) == before


def test_hangup_that_nohup_keeps_away_interrupts_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "wait", lambda *_: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        machine.replace()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert machine.places["k3s"].read_text() == NEW


def test_update_without_its_terminal_goes_on_or_back_and_is_mended_by_who_waits(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process waits for the lock, as a service of the system does, and mends when the first is killed."""
    old = machine.state()
    (tmp_path / "waits").touch()

    def waits(*_: object) -> None:
        machine.k3s_writes()
        (tmp_path / "waits").unlink()
        time.sleep(60)

    monkeypatch.setattr(update, "wait", waits)
    first = os.fork()
    if not first:
        machine.replace()
        os._exit(0)
    while (tmp_path / "waits").exists():
        time.sleep(0.01)
    with pytest.raises(journal.Busy, match="an update is running"):
        mend()
    mend(starting=True)
    assert machine.state()["bin/k3s"] == NEW, "the update itself starts k3s: that mends nothing"
    second = os.fork()
    if not second:
        update.recover(lambda _: None, waiting=True)
        os._exit(0)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    os.waitpid(second, 0)
    assert machine.state() == old


def test_k3s_that_does_not_stop_changes_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    old = machine.state()
    stops: list[int] = []

    def stop() -> None:
        stops.append(1)
        raise Failure("systemctl stop k3s … did not end within 120 s")

    monkeypatch.setattr(update, "_stop", stop)
    with pytest.raises(Failure, match="all is as it was before: systemctl stop k3s"):
        machine.replace()
    assert (machine.state(), stops) == (old, [1])


def test_nothing_to_mend_and_a_journal_that_is_none(machine: Machine) -> None:
    old = machine.state()
    mend()
    assert machine.state() == old
    for text in ("", "[]", "{}", '{"stage": "x", "old": [], "new": [], "restart": true}',
                 '{"stage": "done", "old": ["../x"], "new": [], "restart": true}'):  # fmt: skip
        journal.path().write_text(text)
        with pytest.raises(Failure, match="is no journal of an update"):
            mend()
    with pytest.raises(Failure, match="is no journal"):
        update.update("bundle.tar", "", lambda _: None)


def test_disk_that_lets_nothing_be_put_back_keeps_the_backups(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = machine.state()

    def fails(*_: object) -> None:
        monkeypatch.setattr(durable, "move", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        raise Failure("the cluster is not ready")

    monkeypatch.setattr(update, "wait", fails)
    with pytest.raises(Failure, match=r"cannot be put back.*Input/output error") as refused:
        machine.replace()
    assert "sudo dev-env recover" in refused.value.hint
    monkeypatch.undo()
    monkeypatch.setattr(journal, "STATE", machine.root / "state")
    monkeypatch.setattr(update, "run", lambda *_, **__: "")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    mend()
    assert machine.state() == old


def test_closed_pipe_and_lost_terminal_end_nothing(tmp_path: Path) -> None:
    program = (
        f"import os, sys\nsys.path.insert(0, {str(Path(update.__file__).parents[1])!r})\n"
        "from dev_env.console import say, answer\n"
        "reader, writer = os.pipe()\nos.dup2(writer, 1)\nos.dup2(writer, 2)\nos.close(writer)\nos.close(reader)\n"
        f"say('a'); answer('b'); open({str(tmp_path / 'end')!r}, 'w').write('reached'); os._exit(0)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert (tmp_path / "end").read_text() == "reached"
