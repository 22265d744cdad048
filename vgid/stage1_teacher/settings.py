"""What a recipe says about stage one. Everything here changes results; paths and limits are flags, not settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vgid.data.strict import Seed, Strict
from vgid.stage1_teacher.icu import IcuSettings, template_text
from vgid.stage1_teacher.perturb import PerturbationName, PerturbationSpace, check_strength, is_random, needs_donor

View = Literal["base", "noise", "icu", "noise+icu"]
ResponseKind = Literal["generated", "reference"]


class PerturbationSettings(Strict):
    """Which noise the views `noise` and `noise+icu` put on the image."""

    name: PerturbationName
    strength: float
    """0 is the identity; up to 1, for `diffusion` a step up to 999."""
    draws: int = Field(default=1, ge=1)
    """Noise draws per example, each a target of its own."""
    space: PerturbationSpace = "pixel"
    """`pixel`: at the picture's own resolution. `processor`: at the size to which the model's processor brings it."""
    donors: str | None = None
    """For `other-subject`: the split whose pictures stand in, `retain` if not given; never one of the same subject."""

    @model_validator(mode="after")
    def _check(self) -> PerturbationSettings:
        check_strength(self.name, self.strength)
        if self.draws > 1 and not is_random(self.name):
            raise ValueError(f"perturbation {self.name} is the same in every draw; set draws to 1")
        if self.donors is not None and not needs_donor(self.name):
            raise ValueError(f"perturbation {self.name} takes no donors; leave the setting out")
        return self

    @property
    def label(self) -> str:
        """What rows call it: its name, and its space where that is not the picture's own."""
        return self.name if self.space == "pixel" else f"{self.name}@{self.space}"


class SamplingSettings(Strict):
    """How the teacher writes its own answers."""

    temperature: float = Field(default=0, ge=0, le=2)
    """0: greedy. The stored distributions are those at temperature 1 whatever is set here."""
    top_p: float = Field(default=1, gt=0, le=1)
    """Nucleus to sample from."""
    samples: int = Field(default=1, ge=1)
    """Answers per example, view and draw, each a target of its own."""

    @model_validator(mode="after")
    def _check(self) -> SamplingSettings:
        if self.temperature == 0 and (self.samples > 1 or self.top_p < 1):
            raise ValueError("at temperature 0 every sample is the same; raise sampling.temperature, or leave it out")
        return self


class PlanEntry(Strict):
    """Which examples become targets, and under which view."""

    split: str
    view: View
    response_kind: Literal["generated", "reference", "both"]
    """The teacher's own answer, the data's answer teacher-forced, or a target of each."""
    modality: Literal["image", "text"] | None = None
    """None: every modality the view applies to."""
    tasks: tuple[str, ...] | None = None
    """None: every task of the split."""

    @model_validator(mode="after")
    def _check(self) -> PlanEntry:
        if self.modality == "text" and "noise" in self.view:
            raise ValueError(f"view {self.view!r} perturbs an image and text-only questions have none; use view 'icu'")
        return self

    @property
    def response_kinds(self) -> tuple[ResponseKind, ...]:
        """`both`, spelt out."""
        return ("generated", "reference") if self.response_kind == "both" else (self.response_kind,)

    def matches(self, *, split: str, modality: str, task: str) -> bool:
        """Whether an example of this split, modality and task belongs to the entry; noise views need an image."""
        modality_fits = modality == (self.modality or modality) and ("noise" not in self.view or modality == "image")
        return split == self.split and modality_fits and (self.tasks is None or task in self.tasks)


class Quarantined(Strict):
    """A subject whose targets are not made."""

    subject: str
    """Its `subject_id`, in the split to forget."""
    reason: str = Field(min_length=1)
    """Why; `vgid teacher inspect` writes it."""


DEFAULT_PLAN = (
    PlanEntry(split="forget", modality="image", tasks=("facts",), view="noise+icu", response_kind="generated"),
    PlanEntry(split="forget", modality="text", tasks=("facts",), view="icu", response_kind="generated"),
    PlanEntry(split="retain", view="base", response_kind="reference"),
)


class TeacherSettings(Strict):
    """The teacher pass."""

    dtype: Literal["float32", "bfloat16", "float16"]
    """Compute type of the frozen base."""
    head_dtype: Literal["float32"] | None = None
    """Compute type of the last layer; None: as `dtype`. A bfloat16 head rounds every logit to steps of 1/16 to 1/8."""
    num_topk: int = Field(ge=1, le=1024)
    """Candidates stored per position (k); the rest is the tail."""
    top_p: float | None = Field(default=None, gt=0, lt=1)
    """Adaptive width: store only the fewest candidates that reach this probability, `num_topk` at most. None: all k."""
    min_k: int = Field(default=8, ge=1)
    """Fewest candidates with `top_p`."""
    seed: Seed
    """Noise seed; pixels depend on (seed, image, draw)."""
    perturbation: PerturbationSettings | None = None
    """Of the views `noise` and `noise+icu`, which need one."""
    icu: str | IcuSettings | None = None
    """ICU instruction of the views `icu` and `noise+icu`, which need one: the name of a template, or more."""
    sampling: SamplingSettings = SamplingSettings()
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest generated response; longer ones are marked `length`."""
    plan: tuple[PlanEntry, ...] | None = None
    """Which targets are made. None: `DEFAULT_PLAN`, less the entries the data has no example for."""
    quarantine: tuple[Quarantined, ...] = ()
    """Subjects left out of the forget plan: what the teacher says of them is not fit to be taught."""

    @model_validator(mode="after")
    def _check(self) -> TeacherSettings:
        if isinstance(self.icu, str):
            template_text(self.icu)
        views = " ".join(entry.view for entry in (self.plan if self.plan is not None else DEFAULT_PLAN))
        for word, setting in (("noise", self.perturbation), ("icu", self.icu)):
            if word in views and setting is None:
                missing = "perturbation" if word == "noise" else "icu"
                raise ValueError(f"a view of the plan needs teacher.{missing}, which is not set")
        if self.top_p is not None and self.min_k > self.num_topk:
            raise ValueError(f"min_k {self.min_k} is above num_topk {self.num_topk}, the most a position stores")
        return self
