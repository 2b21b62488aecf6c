"""Runs `invoke` with many lists of arguments, each in a process of its own that has the imports already.

Reads the lists from standard input, as JSON; writes [exit status, standard output, standard error] of each.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import tempfile

from invoke.main import program

from vmimage import commands


def one(args: list[str]) -> tuple[int, str, str]:
    """Run `invoke ARGS`; returns its exit status, and what it wrote."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            # As `python -m invoke` does: it ends by SystemExit, or by an exception that Python itself shows.
            program.run(["invoke", *args])
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return os.waitstatus_to_exitcode(status), texts[0], texts[1]


if __name__ == "__main__":
    lists = json.load(sys.stdin)
    for found in pkgutil.iter_modules(commands.__path__, "vmimage.commands."):
        importlib.import_module(found.name)
    sys.stdout.write(json.dumps([one(args) for args in lists]))
