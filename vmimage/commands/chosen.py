"""The options of a task, from its arguments and the environment; what is wrong with them is told as everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from invoke.exceptions import Exit

from vmimage.util import settings
from vmimage.util.errors import VmimageError
from vmimage.util.printable import printable


def options(
    *,
    mirrors: Sequence[str] = (),
    upstreams: Sequence[str] = (),
    debian_mirror: str | None = None,
    accelerator: str | None = None,
    security_data: str | None = None,
    sign: str | None = None,
    allowed_signers: str | None = None,
    bundle: str | None = None,
) -> settings.Options:
    """Join arguments and environment; leave with an exit code where these cannot be."""
    try:
        return settings.options(
            mirrors=mirrors,
            upstreams=upstreams,
            debian_mirror=debian_mirror,
            accelerator=accelerator,
            security_data=security_data,
            sign=sign,
            allowed_signers=allowed_signers,
            bundle=bundle,
        )
    except VmimageError as error:
        raise Exit(printable(f"\n{error.message}\n\n{error.hint}"), code=error.exit_code) from None
