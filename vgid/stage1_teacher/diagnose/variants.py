"""A cache may hold several settings of one teacher: which there are, and which rows of one of them train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vgid.errors import ConfigError


class Interventions(NamedTuple):
    """What was done to the question."""

    perturbation: str | None
    strength: float | None
    noise_seed: int | None
    icu_id: str | None
    otherwise: str | None = None
    """Template of the questions that the first would give away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One setting of the interventions; `base` rows belong to all of them."""

    perturbation: str | None
    strength: float | None
    noise_seed: int | None
    icu_id: str | None
    engine_id: str
    otherwise: str | None = None
    """A second template that stands in for the first; only a recipe can tell that two belong together."""

    @property
    def view(self) -> str:
        """What its forget pictures are shown under."""
        return "+".join([*(["noise"] if self.perturbation else []), *(["icu"] if self.icu_id else [])]) or "base"

    @property
    def interventions(self) -> Interventions:
        """The setting, whichever engine computed it."""
        return Interventions(self.perturbation, self.strength, self.noise_seed, self.icu_id, self.otherwise)

    def describe(self) -> str:
        """In words."""
        noise = f"{self.perturbation} {self.strength:g}, seed {self.noise_seed}" if self.perturbation else "no noise"
        icu = f"icu {self.icu_id}" if self.icu_id else "no instruction"
        return f"{noise}, {icu}" + (f" or {self.otherwise}" if self.otherwise else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """Rows that train."""

    split: str
    modality: str | None
    """None: both."""
    view: str
    response_kind: str


def find_variants(rows: Iterable[Mapping[str, Any]]) -> list[tuple[Variant, int]]:
    """Variants of a cache with their forget rows, most first.

    A variant is a noise together with an instruction where the cache has rows of both at once. A noise or an
    instruction that never stands with the other is a variant of its own.

    Args:
        rows: From d16_variants.sql.
    """
    fields = ("perturbation", "strength", "noise_seed", "icu_id", "engine_id")
    found = {Variant(**{name: row[name] for name in fields}): row["forget_rows"] for row in rows}
    noised = {_noise(each) for each in found if each.view == "noise+icu"}
    instructed = {(each.icu_id, each.engine_id) for each in found if each.view == "noise+icu"}
    alone = {
        each
        for each in found
        if (each.view == "noise" and _noise(each) not in noised)
        or (each.view == "icu" and (each.icu_id, each.engine_id) not in instructed)
    }
    both = {each for each in found if each.view == "noise+icu"}
    whole = (both | alone) or set(found)
    counted = [(each, sum(rows for part, rows in found.items() if _belongs(part, each))) for each in whole]
    return sorted(counted, key=lambda pair: (-pair[1], pair[0].describe(), pair[0].engine_id))


def choose(
    variants: Sequence[tuple[Variant, int]],
    *,
    perturbation: str | None,
    strength: float | None,
    icu_id: str | None,
    prefer: Interventions | None,
) -> Variant:
    """The variant that the options name; of several the preferred one, or else the one with most forget rows.

    Raises:
        ConfigError: none fits.
    """
    fitting = [
        variant
        for variant, _ in variants
        if perturbation in (None, variant.perturbation)
        and strength in (None, variant.strength)
        and icu_id in (None, variant.icu_id)
    ]
    for variant in fitting:
        if prefer is not None and variant.interventions == prefer._replace(otherwise=None):
            return replace(variant, otherwise=prefer.otherwise)
    if fitting:
        return fitting[0]
    asked = {"--perturbation": perturbation, "--strength": strength, "--icu": icu_id}
    said = " ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
    there = "; ".join(variant.describe() for variant, _ in variants)
    raise ConfigError(f"{said}: the cache has no such rows; it has {there}")


def taught_by_default(variant: Variant, kinds: Iterable[tuple[str, str, str, str]]) -> tuple[Taught, ...]:
    """What trains where no recipe says it: the variant's strongest view on the forget rows, the base on all others.

    Generated answers are taken for the forget rows if there are any, reference answers for the others.

    Args:
        variant: The variant.
        kinds: (split, modality, view, response_kind) of its rows.
    """
    there = set(kinds)
    taught: list[Taught] = []
    for split, modality in sorted({kind[:2] for kind in there}):
        forget = split == "forget"
        strongest = variant.view if modality == "image" else ("icu" if variant.icu_id else "base")
        views = [strongest, "noise+icu", "icu", "noise"] if forget else ["base", "noise", "icu", "noise+icu"]
        order = ("generated", "reference") if forget else ("reference", "generated")
        wanted = ((split, modality, view, kind) for view in views for kind in order)
        if (chosen := next((each for each in wanted if each in there), None)) is not None:
            taught.append(Taught(split=split, modality=modality, view=chosen[2], response_kind=chosen[3]))
    return tuple(taught)


def _noise(variant: Variant) -> tuple[object, ...]:
    return variant.perturbation, variant.strength, variant.noise_seed, variant.engine_id


def _belongs(part: Variant, whole: Variant) -> bool:
    noise_fits = part.perturbation is None or _noise(part) == _noise(whole)
    return noise_fits and part.icu_id in (None, whole.icu_id) and part.engine_id == whole.engine_id
