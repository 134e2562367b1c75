"""The base of every configuration section, and the kinds of numbers that fields have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _number(value: Any) -> Any:
    """YAML's yes and no are numbers to Python."""
    if isinstance(value, bool):
        raise PydanticCustomError("no_boolean", "Input should be a number")
    return value


Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, BeforeValidator(_number), Field(gt=0.0)]
NonNegativeFloat = Annotated[float, BeforeValidator(_number), Field(ge=0.0)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
NonNegative = Annotated[int, BeforeValidator(_number), Field(ge=0)]


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
