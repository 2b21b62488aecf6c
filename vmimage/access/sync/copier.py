"""The host's half of `invoke share --sync`: it tells the machine what there is and what changes, and what it asks for.

What the machine answers is data: only paths that were offered to it are ever read for it.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from vmimage.access.confined import components
from vmimage.access.sync.tree import IGNORE, MOST_ENTRIES, Entry, Seen, Tree, changes, content
from vmimage.util.console import Console, human_bytes
from vmimage.util.errors import HostError

MOST_ANSWER_BYTES = 64 << 10
OFFERS_BYTES = 256 << 10
"""Offers that are sent at once."""
# What could not be copied is offered again, and the directory is looked through for what nobody told of.
AGAIN_SECONDS = 5.0
LOOK_SECONDS = 30.0
LEISURE = 20
"""Between two looks through the directory, times what one takes."""
MANY_NAMES = 200
"""So many changes at once, and looking through the directory takes less time."""
SHOWN = 10
SHOWN_CHARACTERS = 200


class Stream(Protocol):
    """What a session is to us: paramiko.Channel, or a socket."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of some bytes."""

    def recv(self, size: int, /) -> bytes:
        """Return what has come, up to so many bytes; nothing when the session has ended."""


class Copier:
    """Copies a directory into a machine for the length of one session."""

    def __init__(self, tree: Tree, stream: Stream, console: Console) -> None:
        self._tree, self._stream, self._console = tree, stream, console
        self._entries: dict[bytes, Entry] = {}
        self._offers = bytearray()
        self._sent = self._number = 0
        self._files = 0
        # What the machine has said, under the lock: paths are among those that were offered.
        self._news = threading.Condition()
        self._wanted: set[bytes] = set()
        self._unknown: dict[bytes, bool] = {}
        self._removed: set[bytes] = set()
        self._changed: set[bytes] = set()
        self._failed: dict[bytes, str] = {}
        self._names: set[bytes] = set()
        self._done = 0
        self._refused = ""
        self._said: set[bytes] = set()
        self.lost = threading.Event()

    def start(self) -> None:
        """Read what the machine answers from now on."""
        threading.Thread(target=self._read, name="sync", daemon=True).start()

    def tell(self, names: Collection[bytes]) -> None:
        """Take the names of what changed on this host."""
        with self._news:
            self._names |= set(names)
            self._news.notify_all()

    def copy_all(self) -> str:
        """Make the machine's directory what this host's is; returns what was done, in words.

        Raises:
            HostError: The session ended, or another one copies there.
        """
        began = time.monotonic()
        seen = self._look()
        self._send("begin")
        with self._news:
            self._entries = seen.entries
        for path, entry in seen.entries.items():
            self._send("offer", path, entry)
        self._wait_for("end")
        self._settle_unknown()
        self._serve_wants()
        self._wait_for("mark")
        self._report()
        took = time.monotonic() - began
        files = sum(entry.kind == "file" for entry in seen.entries.values())
        return f"{self._files} of {files} files, {human_bytes(self._sent)}, in {took:.1f} s"

    def follow(self) -> None:
        """Copy what changes until the session is lost."""
        again_at = look_at = time.monotonic() + AGAIN_SECONDS
        while not self.lost.is_set():
            with self._news:
                self._news.wait_for(
                    lambda: self._names or self._wanted or self.lost.is_set(),
                    timeout=max(0.0, min(again_at, look_at) - time.monotonic()),
                )
                names, self._names = self._names, set()
            if names:
                self._apply(names)
            self._serve_wants()
            self._flush()
            if time.monotonic() > look_at:
                began = time.monotonic()
                self._apply_all()
                self._flush()
                look_at = time.monotonic() + max(LOOK_SECONDS, LEISURE * (time.monotonic() - began))
            if time.monotonic() > again_at:
                self._settle_unknown()
                self._report()
                self._offer_again()
                again_at = time.monotonic() + AGAIN_SECONDS

    # --- What changed here ----------------------------------------------------------------------------

    def _look(self) -> Seen:
        self._tree.forget_rules()
        seen = self._tree.look()
        for folder in seen.unreadable:
            self._say_once(folder, "not copied, since it cannot be read")
        return seen

    def _apply(self, names: set[bytes]) -> None:
        """Send what became of some names."""
        if len(names) > MANY_NAMES or any(name.rpartition(b"/")[2] in (IGNORE, b".") for name in names):
            self._apply_all()
            return
        for name in sorted(names):
            entry, known = self._tree.entry(name), self._entries.get(name)
            before = {name: known} if known else {}
            after = {name: entry} if entry else {}
            if known and known.kind == "dir":
                before |= {path: each for path, each in self._entries.items() if path.startswith(name + b"/")}
            if entry and entry.kind == "dir":
                after |= self._tree.look(name).entries
            self._send_changes(before, after)

    def _apply_all(self) -> None:
        found = self._look().entries
        if self._entries and not found:
            # A disk that was unmounted, or a directory that is made anew: nobody wants the copy to go with it.
            self._say_once(b".", "gone or empty here, so nothing is removed there; it goes on when something is here")
            return
        self._said.discard(b".")
        self._send_changes(dict(self._entries), found)

    def _send_changes(self, before: Mapping[bytes, Entry], after: Mapping[bytes, Entry]) -> None:
        gone, new = changes(before, after)
        for path in gone:
            self._send_gone(path, directory=before[path].kind == "dir")
        with self._news:
            for path in gone:
                self._entries.pop(path, None)
            self._entries |= {path: after[path] for path in new}
        for path in new:
            if after[path].kind == "file":
                self._put(path)
            else:
                self._send("offer", path, after[path])

    def _send_gone(self, path: bytes, *, directory: bool) -> None:
        with self._news:
            self._removed.add(path)
        # What a rule leaves out from now on is the machine's own, and stays there.
        self._send("forget" if self._tree.is_left_out(path, directory=directory) else "gone", path)

    # --- What the machine asks for --------------------------------------------------------------------

    def _serve_wants(self) -> None:
        with self._news:
            wanted, self._wanted = self._wanted, set()
        for path in sorted(wanted):
            entry = self._entries.get(path)
            if entry and entry.kind == "file":
                self._put(path)
            elif entry:
                self._send("offer", path, entry)

    def _settle_unknown(self) -> None:
        if not self._entries:
            return  # as in _apply_all
        with self._news:
            unknown, self._unknown = self._unknown, {}
        for path in sorted(unknown, reverse=True):
            self._send_gone(path, directory=unknown[path])

    def _offer_again(self) -> None:
        with self._news:
            held = self._changed | set(self._failed)
            self._changed, self._failed, self._removed = set(), {}, set()
            entries = {path: self._entries[path] for path in held if path in self._entries}
        for path, entry in sorted(entries.items()):
            self._send("offer", path, entry)
        if entries:
            self._wait_for("mark")
        with self._news:
            self._said -= held - self._changed - set(self._failed)

    def _report(self) -> None:
        with self._news:
            changed, failed = self._changed - self._said, set(self._failed) - self._said
            reasons = sorted({self._failed[path] for path in failed})
        self._show(changed, "changed in the machine, so not overwritten; remove it there, and it is copied again")
        self._show(failed, f"not copied, and tried again: {', '.join(reasons)}")
        self._said |= changed | failed

    def _show(self, paths: Collection[bytes], what: str) -> None:
        names = [path.decode(errors="surrogateescape") for path in sorted(paths)]
        if names:
            self._console.event("not copied", paths=names[:SHOWN], count=len(names), why=what)
            more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
            self._console.say("\n  ".join([f"{what}:", *names[:SHOWN], *more]))

    def _say_once(self, path: bytes, what: str) -> None:
        if path not in self._said:
            self._said.add(path)
            self._show([path], what)

    # --- The stream -----------------------------------------------------------------------------------

    def _send(self, op: str, path: bytes = b"", entry: Entry | None = None, **more: object) -> None:
        said: dict[str, object] = {"op": op, "path": path.decode(errors="surrogateescape"), **more}
        if entry:
            said["state"] = entry.state
        data = json.dumps(said).encode()
        self._offers += struct.pack("!I", len(data)) + data
        if len(self._offers) > OFFERS_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._offers:
            self._stream.sendall(bytes(self._offers))
            self._offers.clear()

    def _put(self, path: bytes) -> None:
        entry = self._tree.entry(path)
        if not entry or entry.kind != "file":
            return  # it changed again, which is told too
        with self._news:
            self._entries[path] = entry
        self._send("put", path, entry)
        self._files += 1
        for part in _frames(content(self._tree.whole(path))):
            self._sent += len(part)
            self._offers += part
            if len(self._offers) > OFFERS_BYTES:
                self._flush()

    def _wait_for(self, op: str) -> None:
        """Send, and wait until the machine has done all that was sent before.

        Raises:
            HostError: The session ended before.
        """
        self._number += 1
        self._send(op, number=self._number)
        self._flush()
        with self._news:
            self._news.wait_for(lambda: self._done >= self._number or self.lost.is_set())
            if self._refused:
                raise HostError(self._refused, hint="end the other one, or name another directory")
            if self._done < self._number:
                raise HostError("the machine has ended the copying", hint="is there room on its disk, and python3?")

    def _read(self) -> None:
        rest = b""
        try:
            while data := self._stream.recv(64 << 10):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
                if len(rest) > MOST_ANSWER_BYTES:
                    raise ValueError("an answer without end")
        except (OSError, EOFError, ValueError, RecursionError, AttributeError, TypeError) as error:
            self._console.warn(f"the machine answers something else than was asked: {error}")
        finally:
            with self._news:
                self.lost.set()
                self._news.notify_all()

    def _take(self, said: dict[str, Any]) -> None:
        """Note an answer; a path that was not offered is none that the machine may ask for."""
        path = next((str(said[key]) for key in ("want", "changed", "failed", "unknown") if key in said), "")
        name = path.encode(errors="surrogateescape")
        with self._news:
            if "done" in said:
                self._done = max(self._done, int(said["done"]))
            elif "refused" in said:
                self._refused = str(said["refused"])[:SHOWN_CHARACTERS]
            elif "unknown" in said and len(self._unknown) < MOST_ENTRIES and components(name):
                self._unknown[name] = bool(said.get("directory"))
            elif name in self._entries and "want" in said:
                self._wanted.add(name)
            elif "changed" in said and (name in self._entries or name in self._removed):
                self._changed.add(name)
            elif name in self._entries:
                full = "the machine's disk is full" if said.get("full") is True else ""
                self._failed[name] = full or str(said.get("why"))[:SHOWN_CHARACTERS]
            self._news.notify_all()


def _frames(parts: Iterable[bytes]) -> Iterable[bytes]:
    """Yield parts as frames, and the empty one at the end."""
    for part in parts:
        yield struct.pack("!I", len(part)) + part
    yield struct.pack("!I", 0)
