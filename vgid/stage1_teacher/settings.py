"""What a recipe says about stage one. Everything here changes results; paths and limits are flags, not settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vgid.data.strict import Strict
from vgid.stage1_teacher.icu import icu_text
from vgid.stage1_teacher.perturb import PerturbationName, check_strength

View = Literal["base", "noise", "icu", "noise+icu"]
ResponseKind = Literal["generated", "reference"]


class PerturbationSettings(Strict):
    """Which noise the views `noise` and `noise+icu` put on the image."""

    name: PerturbationName
    strength: float
    """0 is the identity; up to 1, for `diffusion` a step up to 999."""
    draws: int = Field(default=1, ge=1)
    """Noise draws per example, each a target of its own."""

    @model_validator(mode="after")
    def _check(self) -> PerturbationSettings:
        check_strength(self.name, self.strength)
        return self


class PlanEntry(Strict):
    """Which examples become targets, and under which view."""

    split: str
    view: View
    response_kind: ResponseKind
    modality: Literal["image", "text"] | None = None
    """None: every modality the view applies to."""
    tasks: tuple[str, ...] | None = None
    """None: every task of the split."""

    @model_validator(mode="after")
    def _check(self) -> PlanEntry:
        if self.modality == "text" and "noise" in self.view:
            raise ValueError(f"view {self.view!r} perturbs an image and text-only questions have none; use view 'icu'")
        return self

    def matches(self, *, split: str, modality: str, task: str) -> bool:
        """Whether an example of this split, modality and task belongs to the entry; noise views need an image."""
        modality_fits = modality == (self.modality or modality) and ("noise" not in self.view or modality == "image")
        return split == self.split and modality_fits and (self.tasks is None or task in self.tasks)


DEFAULT_PLAN = (
    PlanEntry(split="forget", modality="image", tasks=("facts",), view="noise+icu", response_kind="generated"),
    PlanEntry(split="forget", modality="text", tasks=("facts",), view="icu", response_kind="generated"),
    PlanEntry(split="retain", view="base", response_kind="reference"),
)


class TeacherSettings(Strict):
    """The teacher pass."""

    dtype: Literal["float32", "bfloat16", "float16"]
    """Compute type of the frozen base."""
    num_topk: int = Field(ge=1, le=1024)
    """Candidates stored per position (k); the rest is the tail."""
    top_p: float | None = Field(default=None, gt=0, lt=1)
    """Adaptive width: store only the fewest candidates that reach this probability, `num_topk` at most. None: all k."""
    min_k: int = Field(default=8, ge=1)
    """Fewest candidates with `top_p`."""
    seed: int
    """Noise seed; pixels depend on (seed, image, draw)."""
    perturbation: PerturbationSettings
    icu: str
    """ICU template of the views `icu` and `noise+icu`."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest generated response; longer ones are marked `length`."""
    plan: tuple[PlanEntry, ...] | None = None
    """Which targets are made. None: `DEFAULT_PLAN`, less the entries the data has no example for."""

    @model_validator(mode="after")
    def _check(self) -> TeacherSettings:
        icu_text(self.icu)
        if self.top_p is not None and self.min_k > self.num_topk:
            raise ValueError(f"min_k {self.min_k} is above num_topk {self.num_topk}, the most a position stores")
        return self
