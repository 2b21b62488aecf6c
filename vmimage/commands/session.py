"""What every command shares: a cache, a console, and errors shown with their exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
from collections.abc import Iterator
from datetime import datetime

from invoke.exceptions import Exit

from vmimage.cache.opened import open_store
from vmimage.cache.store import Store
from vmimage.util.console import Console
from vmimage.util.errors import VmimageError
from vmimage.util.masking import masked_argument
from vmimage.util.printable import printable
from vmimage.util.run import orderly_signals
from vmimage.util.settings import Options


@contextlib.contextmanager
def errors_shown(console: Console) -> Iterator[None]:
    """Show errors as people and machines need them, and leave with their exit codes (README: exit codes)."""
    where = f"\nlog: {console.log_dir / 'run.log'}" if console.log_dir else ""
    try:
        with orderly_signals():
            yield
    except VmimageError as error:
        _error_event(console, error.message, error.hint, error.exit_code)
        hint = f"\n\n{error.hint}" if error.hint else ""
        raise Exit(printable(f"\n{error.message}{hint}{where}"), code=error.exit_code) from None
    except KeyboardInterrupt:
        raise Exit(f"\nstopped; nothing half-made was kept{where}", code=130) from None
    except OSError as error:
        if _reader_has_gone():
            raise Exit(code=141) from None
        # Without a log it would go to the terminal.
        if console.log_dir:
            logging.getLogger("vmimage").exception("unexpected")
        _error_event(console, str(error), "", 3)
        raise Exit(printable(f"\n{error}{where}"), code=3) from None


def _error_event(console: Console, message: str, hint: str, exit_code: int) -> None:
    """Tell machines of an error; where standard output takes nothing, as on a full disk, only people are told."""
    with contextlib.suppress(OSError):
        console.event("error", message=message, hint=hint, exit_code=exit_code)


def _reader_has_gone() -> bool:
    """Tell whether nobody reads our standard output any more (`| head`); nothing is written there then."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    # Python would complain once more when it flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


@contextlib.contextmanager
def session(options: Options, *, json_lines: bool = False, log: str = "") -> Iterator[tuple[Console, Store]]:
    """Open the cache and the console for one task.

    Args:
        log: Name under which the run keeps its log in the cache; without one it keeps none.
    """
    with errors_shown(Console(json_lines=json_lines)):
        store = open_store(options)
        # Names sort by time.
        name = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{log}-{os.getpid()}"
        if log:
            store.hold("logs", name)
        console = Console(log_dir=store.root / "logs" / name if log else None, json_lines=json_lines)
    with errors_shown(console):
        console.event("run", argv=[masked_argument(each) for each in sys.argv[1:]], log=str(console.log_dir or ""))
        yield console, store
