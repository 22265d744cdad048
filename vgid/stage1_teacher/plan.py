"""The plan: which targets a recipe asks for, each with an id over everything it depends on. Pure; nothing is generated.

The plan is cut into a fixed number of buckets by image (by subject for text-only questions), so that questions on one
perturbed image stay together and worker i of n takes the buckets b with b mod n = i, whatever n is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from vgid.cache.schema import ROW_VERSION, ids_sha256
from vgid.data.examples import Example
from vgid.data.images import image_sha256
from vgid.errors import ConfigError
from vgid.stage1_teacher.icu import Instruction, instruct
from vgid.stage1_teacher.perturb import PIXEL_FORM, Donor, choose_donor, needs_donor
from vgid.stage1_teacher.settings import DEFAULT_PLAN, PlanEntry, ResponseKind, TeacherSettings

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
    sample: int
    bucket: int
    image_sha256: str | None
    instruction: Instruction | None
    """What stands before the question, in the views `icu` and `noise+icu`."""
    donor: Donor | None
    """Whose picture stands in, with the perturbation `other-subject`."""

    @property
    def is_noised(self) -> bool:
        """Whether the view perturbs the image."""
        return "noise" in self.view


def make_plan(
    examples: Iterable[Example], *, settings: TeacherSettings, teacher: Mapping[str, str | int], engine_id: str
) -> list[PlannedTarget]:
    """List every target the recipe asks for, ordered by bucket.

    Examples that the data marks as held out (photo or phrasing) are for evaluation and never planned. Those to forget
    of subjects in quarantine are not planned either.

    Args:
        examples: All examples of the data.
        settings: Stage one's part of the recipe.
        teacher: From `identify_teacher`.
        engine_id: From `engine_identity`.

    Raises:
        ConfigError: a plan entry matches no example, two entries ask for the same target, or a subject in quarantine
            is not in the data.
    """
    known = _without_quarantined(examples, settings)
    trainable = [example for example in known if "heldout" not in (example.photo, example.phrasing)]
    hashes: dict[bytes | str, str] = {}
    donors = _donors(trainable, settings, hashes)
    planned: dict[str, PlannedTarget] = {}
    for entry in DEFAULT_PLAN if settings.plan is None else settings.plan:
        matching = [example for example in trainable if _matches(entry, example)]
        if not matching and settings.plan is not None:
            raise ConfigError(f"plan entry {_describe(entry)} matches no example; the data has {_census(trainable)}")
        for example in matching:
            instruction = instruct(settings.icu, example) if settings.icu is not None and "icu" in entry.view else None
            for kind, draw, sample in _variants(entry, settings):
                base = PlannedTarget(
                    target_id="",
                    example=example,
                    view=entry.view,
                    response_kind=kind,
                    draw=draw,
                    sample=sample,
                    bucket=0,
                    image_sha256=_image_hash(example, hashes),
                    instruction=instruction,
                    donor=_donor(example, draw, settings, donors, hashes) if "noise" in entry.view else None,
                )
                target = _identified(base, settings, teacher, engine_id)
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


def _variants(entry: PlanEntry, settings: TeacherSettings) -> Iterator[tuple[ResponseKind, int, int]]:
    """(response kind, draw, sample) of every target that an entry makes of one example."""
    for kind in entry.response_kinds:
        for draw in range(settings.perturbation.draws if settings.perturbation and "noise" in entry.view else 1):
            for sample in range(settings.sampling.samples if kind == "generated" else 1):
                yield kind, draw, sample


def _identified(
    target: PlannedTarget, settings: TeacherSettings, teacher: Mapping[str, str | int], engine_id: str
) -> PlannedTarget:
    """The target with its id and bucket. A setting that is left out changes no id (docs/cache-format.md, Identity)."""
    noise, generated, instruction = settings.perturbation, target.response_kind == "generated", target.instruction
    depends_on = {
        "format": ROW_VERSION,
        "example": target.example.content_sha256(),
        "image": target.image_sha256,
        "view": target.view,
        "response_kind": target.response_kind,
        "max_new_tokens": settings.max_new_tokens if generated else None,
        "perturbation": [noise.name, noise.strength, settings.seed, target.draw, PIXEL_FORM]
        if noise is not None and target.is_noised
        else None,
        "icu": [instruction.icu_id, instruction.text] if instruction else None,
        "teacher": dict(teacher),
        "engine": engine_id,
        **_width(settings),
        "rounding": ROUNDING,
    }
    if noise is not None and target.is_noised and noise.space != "pixel":
        depends_on["space"] = noise.space
    if target.donor is not None:
        depends_on["donor"] = target.donor.image_sha256
    if generated and settings.sampling.temperature > 0:
        sampling = settings.sampling
        depends_on["sampling"] = [sampling.temperature, sampling.top_p, target.sample]
    group = target.image_sha256 or target.example.subject_id
    return replace(
        target,
        target_id=sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest(),
        bucket=int.from_bytes(sha256(group.encode()).digest()[:4], "big") % NUM_BUCKETS,
    )


def _donors(
    examples: Iterable[Example], settings: TeacherSettings, hashes: dict[bytes | str, str]
) -> tuple[Donor, ...]:
    """The pictures that may stand in for another subject's, each once."""
    noise = settings.perturbation
    if noise is None or not needs_donor(noise.name):
        return ()
    found = {
        (example.subject_id, image_hash): Donor(
            subject_id=example.subject_id, image_sha256=image_hash, image=example.image
        )
        for example in examples
        if example.split == (noise.donors or "retain") and example.image is not None
        for image_hash in [_image_hash(example, hashes) or ""]
    }
    return tuple(found.values())


def _donor(
    example: Example,
    draw: int,
    settings: TeacherSettings,
    donors: Sequence[Donor],
    hashes: dict[bytes | str, str],
) -> Donor | None:
    image_hash = _image_hash(example, hashes)
    if image_hash is None or settings.perturbation is None or not needs_donor(settings.perturbation.name):
        return None
    return choose_donor(donors, subject_id=example.subject_id, seed=settings.seed, image_sha256=image_hash, draw=draw)


def _order(target: PlannedTarget) -> tuple[int, str, bool, int, str, str, str]:
    """Questions on the same pixels side by side, those with the same instruction before them first of all."""
    return (
        target.bucket,
        target.image_sha256 or "",
        target.is_noised,
        target.draw,
        target.instruction.text if target.instruction else "",
        target.example.example_id,
        target.target_id,
    )


def _without_quarantined(examples: Iterable[Example], settings: TeacherSettings) -> list[Example]:
    known, quarantined = list(examples), {each.subject for each in settings.quarantine}
    if unknown := quarantined - {example.subject_id for example in known if example.split == "forget"}:
        raise ConfigError(
            f"teacher.quarantine: subject {min(unknown)!r} is not among those to forget; correct it, or take it out"
        )
    return [example for example in known if example.split != "forget" or example.subject_id not in quarantined]


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
