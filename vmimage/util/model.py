"""What all models of files that people write share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Frozen, nothing coerced, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
