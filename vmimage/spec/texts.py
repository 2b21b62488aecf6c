"""Texts of images.yaml that its models share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, StringConstraints


def _shown(text: str) -> str:
    """Refuse what cannot be seen: it would act on terminals, and descriptors of appliances cannot hold it."""
    hidden = next((each for each in text if not each.isprintable()), "")
    if hidden:
        raise ValueError(f"the control character {hidden!a} cannot stand here")
    return text


Shown = AfterValidator(_shown)
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=40)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200), Shown]
