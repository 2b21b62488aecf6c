"""`dev-env update`: newer k3s, kubectl and helm for a machine that runs, and back to the old ones if they fail.

It may be interrupted at any moment: its journal says what is to be done then (journal.py). Services of the system look
for one before k3s starts, and when an update has been killed; so does the next update.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dev_env import Failure, archives, durable, journal
from dev_env.bundle import fetched, order, unpacked, version_in
from dev_env.ready import WAIT_SECONDS, wait
from dev_env.tools import ended, run

BIN = Path("/usr/local/bin")
IMAGES = Path("/var/lib/rancher/k3s/agent/images/k3s-airgap-images.tar.zst")
DATASTORE = Path("/var/lib/rancher/k3s/server/db")
"""What the cluster knows; an older k3s need not understand what a newer one made of it."""
TARGETS = {"k3s": BIN / "k3s", "kubectl": BIN / "kubectl", "helm": BIN / "helm", "k3s-airgap-images": IMAGES}
VERSION_COMMANDS = {"k3s": ["--version"], "kubectl": ["version", "--client"], "helm": ["version"]}
STOP_SECONDS = 120.0
SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
OUTCOMES = {
    journal.COPYING: "nothing was replaced yet",
    journal.REPLACING: "the old files are back",
    journal.DONE: "the new files stay",
}
Report = Callable[[str], None]


def update(
    source: str, sha256: str, report: Report, *, allow_older: bool = False, seconds: float = WAIT_SECONDS
) -> list[str]:
    """Install what a bundle brings; returns "name version" of each.

    Args:
        source: A file or a URL.
        sha256: Of the bundle; needed for a URL.
        seconds: How long the cluster may take to be ready with it.

    Raises:
        Failure: The bundle is not what it should be (nothing was changed), or the cluster did not come up with it
            (all is as before).
    """
    _require_root("update …")
    with journal.locked(), interrupted_by_signals():
        recover_locked(report)
        folder = journal.workspace()
        folder.mkdir(mode=0o700)
        try:
            bundle = fetched(source, sha256, folder)
            files = unpacked(bundle, folder)
            for name, (path, version) in files.items():
                _require_version(name, path, version)
                if not allow_older:
                    _require_newer(name, version)
            replace({name: path for name, (path, _) in files.items()}, report, seconds)
        except KeyboardInterrupt as error:
            raise Failure(f"the update was interrupted: {recover_locked(report) or 'nothing was changed'}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return [f"{name} {version}" for name, (_, version) in files.items()]


def recover(report: Report, *, starting: bool = False, waiting: bool = False) -> None:
    """Mend what an update that was cut off left behind, if there was one.

    Args:
        starting: The system does this before it starts k3s, which is not to be stopped or started.
        waiting: For an update that runs: it may be cut off.

    Raises:
        Failure: It cannot be mended, or an update is running.
    """
    _require_root("recover")
    try:
        with journal.locked(wait=waiting):
            report(recover_locked(report, starting=starting) or "no update was cut off")
    except journal.Busy:
        # Then it is the update that starts k3s; it mends what is to be mended itself.
        if not starting:
            raise


def recover_locked(report: Report, *, starting: bool = False) -> str:
    """Do what `recover` does, while the lock of updates is held; returns what was done, nothing if that is nothing.

    Raises:
        Failure: A file cannot be put back, the disk being full or broken.
    """
    done = ""
    if left := journal.found():
        restart = left.restart and not (starting and not _runs())
        with not_interrupted():
            if restart and left.stage == journal.REPLACING:
                _stop()
            _put_right(left)
            done = f"an update was cut off: {OUTCOMES[left.stage]}"
            if restart:
                report(done)
                run(["systemctl", "start", "--no-block", "k3s"], shown=True)
    durable.remove(journal.beside(journal.path()))
    durable.remove(journal.workspace())
    return done


def _put_right(left: journal.Journal) -> None:
    """Let the old files or the new ones stay, as the journal says."""
    try:
        left.put_back() if left.stage == journal.REPLACING else left.close()
    except OSError as error:
        raise Failure(
            f"what was before the update cannot be put back: {error}",
            f"nothing is lost: {journal.path()} names the files, their backups lie beside them. Make room, then "
            "`sudo dev-env recover`",
        ) from error


def _require_root(command: str) -> None:
    if os.geteuid():
        raise Failure("only root may replace these programs", f"`sudo dev-env {command}`")


def _require_version(name: str, path: Path, version: str) -> None:
    """Let a program say its version before it takes the old one's place."""
    path.chmod(0o755 if name in VERSION_COMMANDS else 0o600)
    if name in VERSION_COMMANDS:
        said = run([str(path), *VERSION_COMMANDS[name]])
        if version_in(said) != version:
            first = (said.splitlines() or ["nothing"])[0]
            raise Failure(f"{name} of the bundle says another version than {version}: {first[:200]}", "make it again")


def _require_newer(name: str, version: str) -> None:
    if name in VERSION_COMMANDS and durable.there(TARGETS[name]):
        here = version_in(run([str(TARGETS[name]), *VERSION_COMMANDS[name]]))
        if not here:
            raise Failure(f"{TARGETS[name]}, which is here, says no version", "--allow-older replaces it all the same")
        if order(here) > order(version):
            raise Failure(f"{name} {version} is older than {here}, which is here", "--allow-older installs it")


def replace(files: Mapping[str, Path], report: Report, seconds: float) -> None:
    """Put files in their places, with k3s stopped if it is among them; put the old ones back if that fails.

    Raises:
        Failure: The cluster did not become ready; all is as before.
    """
    restart = any(name.startswith("k3s") for name in files)
    targets = [TARGETS[name] for name in files]
    targets += [DATASTORE] if restart else []
    targets += [archives.INDEX] if "k3s-airgap-images" in files else []
    with interrupted_by_signals():
        try:
            kept = journal.begin(targets, restart=restart)
            if restart:
                _stop()
            kept.back_up()
            kept = kept.at(journal.REPLACING)
            for name, path in files.items():
                _place(path, TARGETS[name])
                report(f"{name} replaced")
            if restart:
                _start(report, seconds)
            if "k3s-airgap-images" in files:
                archives.index()
            kept.at(journal.DONE)
        except (Failure, OSError, KeyboardInterrupt) as error:
            _undo(error, report)
        with not_interrupted():
            if done := journal.found():
                _put_right(done)


def _undo(error: BaseException, report: Report) -> None:
    """Put the old files back; unless the journal says that the update had come to its end.

    Raises:
        Failure: Always, but for that.
    """
    with not_interrupted():
        left = journal.found()
        if left is None:  # not even begun
            raise error
        if left.stage == journal.DONE:
            return
        report("it did not work; putting the old ones back")
        why = str(error) or "it was interrupted"
        if left.restart and left.stage == journal.REPLACING:
            _stop()
        _put_right(left)
        if left.restart:
            try:
                _start(report, WAIT_SECONDS)
            except Failure as failure:
                text = f"the update failed: {why}\nThe old files are back, but the cluster is not ready with them: "
                raise Failure(f"{text}{failure}", "`journalctl -u k3s`") from error
    hint = getattr(error, "hint", "") or "`journalctl -u k3s`"
    raise Failure(f"the update failed, all is as it was before: {why}", hint) from error


def _place(path: Path, target: Path) -> None:
    """Copy beside the target, then rename: a program that runs is never half-written."""
    beside = journal.beside(target)
    durable.remove(beside)
    durable.copy(path, beside)
    os.chown(beside, 0, 0)
    # k3s notes times in whole seconds: an archive of a later fraction would be imported at every start.
    now = int(time.time())
    os.utime(beside, (now, now))
    durable.move(beside, target)


def _stop() -> None:
    run(["systemctl", "stop", "k3s"], shown=True, seconds=STOP_SECONDS)


def _runs() -> bool:
    """Tell whether k3s runs."""
    return not ended(["systemctl", "is-active", "--quiet", "k3s"]).status


def _start(report: Report, seconds: float) -> None:
    # Without waiting here: systemd starts it again when it fails, and waits for ever when it hangs.
    run(["systemctl", "start", "--no-block", "k3s"], shown=True)
    wait(report, seconds)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let a hangup of the terminal and a request to end be what Ctrl-C is; but not what `nohup` keeps away."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(f"it was interrupted ({signal.Signals(number).name})")

    with _handled(interrupt, *(number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)):
        yield


@contextmanager
def not_interrupted() -> Iterator[None]:
    """Let nothing but SIGKILL and a power-off interrupt what puts things right."""
    with _handled(signal.SIG_IGN, *SIGNALS):
        yield


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, *numbers: signal.Signals
) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
