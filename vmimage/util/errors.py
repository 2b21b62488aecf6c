"""The errors that vmimage raises on purpose: what is wrong, what to do, and the exit code that says which kind."""

from __future__ import annotations


class VmimageError(Exception):
    """A failure that a user can act on; `tasks.py` prints it without a traceback.

    Args:
        message: What is wrong and where (file, line, key, command).
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(VmimageError):
    """What the user wrote cannot be used: images.yaml, an argument, an environment variable."""

    exit_code = 2


class HostError(VmimageError):
    """This host lacks something: a tool, a privilege, disk space."""

    exit_code = 3


class FetchError(VmimageError):
    """A pinned file could not be had, or what came was not what was pinned."""

    exit_code = 4


class BuildError(VmimageError):
    """A base, bake or export stage failed."""

    exit_code = 5


class VerifyError(VmimageError):
    """An image failed its checks, or has no verdict that speaks of its exact bytes."""

    exit_code = 6
