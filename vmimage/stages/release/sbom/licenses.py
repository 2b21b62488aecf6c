"""Licences as SPDX expressions: those of pins and Python packages, and those of Debian's packages that debsbom reads.

What a package says of its licences is a text of its author. One that is no expression is left out, or told as a name:
the image is described all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import debsbom.apt.copyright as debsbom_licenses
from license_expression import ExpressionError, get_spdx_licensing
from license_expression import LicenseExpression as Expression
from typing_extensions import override

MOST_LICENSE = 1000
"""Characters of an expression of licences."""
MOST_EXPRESSIONS = 200
"""Different ones of a package: to join them takes time by the square of their number."""

# It reads the list of all licences for each package: 2000 of them, 0.1 s.
debsbom_licenses.get_spdx_licensing = cache(get_spdx_licensing)


def expression(text: str) -> Expression | None:
    """Return an expression of licences that SPDX knows, which has no truth of its own; nothing for another text."""
    if not text or len(text) > MOST_LICENSE:
        return None
    try:
        # Strict: an exception does not stand for a licence, nor a licence for an exception.
        return debsbom_licenses.get_spdx_licensing().parse(text, validate=True, strict=True)
    except (ExpressionError, RecursionError, LookupError, ValueError, TypeError, AttributeError):
        return None


class _Copyright(debsbom_licenses.Copyright):  # type: ignore[misc]  # it has no types
    """A copyright file; debsbom goes on without its licences only where it finds that it does not know them."""

    @override
    def spdx_license_expressions(self) -> Iterable[Expression]:
        """Return the licences, each once.

        Raises:
            UnknownLicenseError, ExpressionError: SPDX does not know them.
        """
        try:
            found = {str(each): each for each in super().spdx_license_expressions()}
        except (RecursionError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise debsbom_licenses.UnknownLicenseError(f"no licences: {error}") from error
        if len(found) > MOST_EXPRESSIONS:
            raise debsbom_licenses.UnknownLicenseError(f"more than {MOST_EXPRESSIONS} expressions")
        for text in found:
            if expression(text) is None:
                raise debsbom_licenses.UnknownLicenseError(f"no expression of licences: {text[:MOST_LICENSE]}")
        return list(found.values())


debsbom_licenses.Copyright = _Copyright
