"""The plan: which targets a recipe asks for, each with an id over everything it depends on. Pure; nothing is generated.

The plan is cut into a fixed number of buckets by image (by subject for text-only questions), so that questions on one
perturbed image stay together and worker i of n takes the buckets b with b mod n = i, whatever n is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from vgid.cache.schema import ROW_VERSION, ids_sha256
from vgid.data.examples import Example
from vgid.data.images import image_sha256
from vgid.errors import ConfigError
from vgid.stage1_teacher.icu import icu_text
from vgid.stage1_teacher.perturb import PIXEL_FORM
from vgid.stage1_teacher.settings import DEFAULT_PLAN, PlanEntry, TeacherSettings

NUM_BUCKETS = 256
ROUNDING = "fp16-grid"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTarget:
    """One target to be made."""

    target_id: str
    example: Example
    view: str
    response_kind: str
    draw: int
    bucket: int
    image_sha256: str | None

    @property
    def is_noised(self) -> bool:
        """Whether the view perturbs the image."""
        return "noise" in self.view

    @property
    def is_instructed(self) -> bool:
        """Whether the view puts an ICU instruction before the question."""
        return "icu" in self.view


def make_plan(
    examples: Iterable[Example], *, settings: TeacherSettings, teacher: Mapping[str, str | int], engine_id: str
) -> list[PlannedTarget]:
    """List every target the recipe asks for, ordered by bucket.

    Examples that the data marks as held out (photo or phrasing) are for evaluation and never planned.

    Args:
        examples: All examples of the data.
        settings: Stage one's part of the recipe.
        teacher: From `identify_teacher`.
        engine_id: From `engine_identity`.

    Raises:
        ConfigError: a plan entry matches no example, or two entries ask for the same target.
    """
    trainable = [example for example in examples if "heldout" not in (example.photo, example.phrasing)]
    hashes: dict[bytes | str, str] = {}
    planned: dict[str, PlannedTarget] = {}
    for entry in DEFAULT_PLAN if settings.plan is None else settings.plan:
        matching = [example for example in trainable if _matches(entry, example)]
        if not matching and settings.plan is not None:
            raise ConfigError(f"plan entry {_describe(entry)} matches no example; the data has {_census(trainable)}")
        for example in matching:
            for draw in range(settings.perturbation.draws if "noise" in entry.view else 1):
                target = _plan_one(example, entry, draw, settings, teacher, engine_id, _image_hash(example, hashes))
                if target.target_id in planned:
                    raise ConfigError(f"plan entry {_describe(entry)} asks again for targets of an earlier entry")
                planned[target.target_id] = target
    if settings.plan is None and not any(target.example.split == "forget" for target in planned.values()):
        raise ConfigError(
            f"the default plan finds nothing to forget (split forget, task facts); the data has "
            f"{_census(trainable)}; write teacher.plan"
        )
    return sorted(planned.values(), key=_order)


def shard_of_plan(plan: Sequence[PlannedTarget], *, index: int, count: int) -> list[PlannedTarget]:
    """The part of the plan that worker `index` of `count` takes."""
    return [target for target in plan if target.bucket % count == index]


def plan_digest(plan: Iterable[PlannedTarget]) -> str:
    """Hash over the ids of a plan, order aside."""
    return ids_sha256(target.target_id for target in plan)


def cache_settings(settings: TeacherSettings) -> dict[str, str | int | float]:
    """What the manifest says about the form of the rows."""
    return {**_width(settings), "rounding": ROUNDING, "pixel_form": PIXEL_FORM}


def _width(settings: TeacherSettings) -> dict[str, int | float]:
    """How many candidates a position stores; ids of fixed-width targets say nothing about adaptive width."""
    adaptive = {} if settings.top_p is None else {"top_p": settings.top_p, "min_k": settings.min_k}
    return {"num_topk": settings.num_topk, **adaptive}


def _plan_one(
    example: Example,
    entry: PlanEntry,
    draw: int,
    settings: TeacherSettings,
    teacher: Mapping[str, str | int],
    engine_id: str,
    image_hash: str | None,
) -> PlannedTarget:
    noise = settings.perturbation
    depends_on = {
        "format": ROW_VERSION,
        "example": example.content_sha256(),
        "image": image_hash,
        "view": entry.view,
        "response_kind": entry.response_kind,
        "max_new_tokens": settings.max_new_tokens if entry.response_kind == "generated" else None,
        "perturbation": [noise.name, noise.strength, settings.seed, draw, PIXEL_FORM]
        if "noise" in entry.view
        else None,
        "icu": [settings.icu, icu_text(settings.icu)] if "icu" in entry.view else None,
        "teacher": dict(teacher),
        "engine": engine_id,
        **_width(settings),
        "rounding": ROUNDING,
    }
    group = image_hash or example.subject_id
    return PlannedTarget(
        target_id=sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest(),
        example=example,
        view=entry.view,
        response_kind=entry.response_kind,
        draw=draw,
        bucket=int.from_bytes(sha256(group.encode()).digest()[:4], "big") % NUM_BUCKETS,
        image_sha256=image_hash,
    )


def _order(target: PlannedTarget) -> tuple[int, str, str, str]:
    """The views of one question side by side, so that a pilot asks the same questions in every view."""
    return target.bucket, target.image_sha256 or "", target.example.example_id, target.target_id


def _matches(entry: PlanEntry, example: Example) -> bool:
    return entry.matches(split=example.split, modality=example.modality, task=example.task)


def _image_hash(example: Example, known: dict[bytes | str, str]) -> str | None:
    if example.image is None:
        return None
    key = example.image if isinstance(example.image, bytes) else str(example.image)
    if key not in known:
        known[key] = image_sha256(example.image)
    return known[key]


def _describe(entry: PlanEntry) -> str:
    return json.dumps(entry.model_dump(exclude_none=True))


def _census(examples: Iterable[Example]) -> str:
    kinds = sorted({f"{example.split}/{example.modality}/{example.task}" for example in examples})
    return ", ".join(kinds) or "no example that is not held out"
