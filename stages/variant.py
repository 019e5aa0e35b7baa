"""What every variant has in common, be it a graph's or a language model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Variant"]

_USUAL_RUNTIMES = ("onnxruntime", "transformers", "onnxruntime-genai", "onnxruntime-cuda", "tensorrt")
"""Those of a target that has no other, and the first of those that have."""


class Variant(BaseModel):
    """The parameters of one variant. The class says what it is, its fields how it is made.

    `runtime` is what runs the result. `name` is what the variant is called in results, records and the release; it
    defaults to the type, with the runtime behind it where that is not the type's usual one: `int8-static-openvino`.
    `exclude` names what stays as it is.

    A subclass adds `type: Literal["…"]`, its parameters, a narrower `runtime`, and these declarations:

    - `precision`: that of the result, in one word
    - `targets`: where that can be done
    - `libraries`: the distributions whose versions decide the result (its runtime aside)

    and overrides `needs_data` if it learns from calibration data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: ClassVar[str]
    targets: ClassVar[tuple[str, ...]]
    libraries: ClassVar[tuple[str, ...]] = ()

    type: str
    runtime: str
    name: str = Field(default_factory=lambda data: _usual_name(data), pattern=r"^[a-z0-9][a-z0-9._-]*(\+fallback)?$")
    exclude: tuple[str, ...] = ()

    @property
    def can_fall_back(self) -> bool:
        """Whether something of it could return to higher precision where a gate refuses it."""
        return False

    def with_higher_precision(self, names: Sequence[str]) -> Self:
        """The same with what `names` names (operators, linear layers) in higher precision."""
        return self.model_copy(update={"exclude": (*self.exclude, *names)})

    @property
    def needs_data(self) -> bool:
        """Whether calibration data are needed to make it."""
        return False


def _usual_name(data: dict[str, Any]) -> str:
    if "runtime" not in data:  # it was refused
        return str(data["type"])
    return data["type"] if data["runtime"] in _USUAL_RUNTIMES else f"{data['type']}-{data['runtime']}"
