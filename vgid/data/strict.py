"""The base of every settings model that a recipe fills."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator of random numbers takes; NumPy's takes no other."""


class Strict(BaseModel):
    """Unknown keys are errors, floats are finite, settings do not change, a field's docstring describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
