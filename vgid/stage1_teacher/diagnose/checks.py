"""The checks as a table: which SQL file measures, and which readings are made of its measures.

A measure is a column of a check's file, one value an observation. A reading combines the means of measures in certain
places; what cannot be known exactly is a pair of bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Means = np.ndarray | np.float64
Bounds = tuple[Means, Means]
Place = Literal["taught", "forget view"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A measure in a place."""

    measure: str
    split: str = "forget"
    modality: str | None = "image"
    view: str = "taught"
    """A view, `taught` (what trains in this split and modality), or `forget view` (what trains on forget pictures)."""
    kind: str | None = None
    """`generated`, `reference`, `taught`, or None for whatever there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingSpec:
    """How a reading is made."""

    name: str
    definition: str
    parts: tuple[Part, ...]
    combine: Callable[..., Bounds]
    """From the means of the parts, in order and of any shape, to lower and upper bound (the same where exact)."""
    missing: str
    """What makes it known, where rows are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSpec:
    """A check."""

    name: str
    title: str
    definition: str
    file: str | None
    readings: tuple[ReadingSpec, ...] = ()
    unknown: str | None = None
    """Why it cannot be known from a cache, where it cannot."""


def _one(value: Means) -> Bounds:
    return value, value


def _bounds(low: Means, high: Means) -> Bounds:
    return low, high


def _ratio(value: Means, base: Means) -> Bounds:
    with np.errstate(invalid="ignore", divide="ignore"):
        return _one(value / base)


def _synergy(low: Means, high: Means, noise_low: Means, noise_high: Means, icu_low: Means, icu_high: Means) -> Bounds:
    return low - np.maximum(noise_high, icu_high), high - np.maximum(noise_low, icu_low)


def _share(low: Means, high: Means, of_low: Means, of_high: Means) -> Bounds:
    with np.errstate(invalid="ignore", divide="ignore"):
        return low / of_high, high / of_low


def _difference(low: Means, high: Means, less_low: Means, less_high: Means) -> Bounds:
    return low - less_high, high - less_low


def _entry(split: str, view: str, kind: str, modality: str = "image") -> str:
    return f"add {{split: {split}, modality: {modality}, view: {view}, response_kind: {kind}}} to teacher.plan"


def _read(name: str, definition: str, *parts: Part, missing: str, combine: Callable[..., Bounds] = _one) -> ReadingSpec:
    return ReadingSpec(name=name, definition=definition, parts=parts, combine=combine, missing=missing)


def _js(
    view: str = "taught", split: str = "forget", suffix: str = "", modality: str | None = "image"
) -> tuple[Part, Part]:
    low, high = (f"js_{side}{suffix}" for side in ("low", "high"))
    return (
        Part(measure=low, view=view, split=split, modality=modality),
        Part(measure=high, view=view, split=split, modality=modality),
    )


NO_FACTS = "the data's facts are needed to judge answers: give --recipe RECIPE, whose data has these questions"
_GENERATED = _entry("forget", "{view}", "generated")
_REFERENCE = _entry("forget", "{view}", "reference")
_PAIRED = f"{_REFERENCE}, and {_entry('forget', 'base', 'reference')}"
_DRAWS = "the cache has one draw of the noise: set teacher.perturbation.draws to 3"
_TEXT_GENERATED = _entry("forget", "icu", "generated", "text")
_TEXT_PAIRED = f"{_entry('forget', 'icu', 'reference', 'text')}, and {_entry('forget', 'base', 'reference', 'text')}"
_OPENERS = "no generated answer in the cache is judged a refusal, so no opener is known"

CHECKS: tuple[CheckSpec, ...] = (
    CheckSpec(
        name="D1",
        title="truth leak",
        definition="Do the teacher's own answers tell a fact of their question?",
        file="d01_truth_leak.sql",
        readings=(
            _read(
                "D1.told",
                "share of generated answers that tell a fact",
                Part(measure="told", kind="generated"),
                missing=_GENERATED,
            ),
            _read(
                "D1.in_topk",
                "share of first fact tokens among the stored candidates, the words before them forced",
                Part(measure="in_topk", kind="reference"),
                missing=_REFERENCE,
            ),
        ),
    ),
    CheckSpec(
        name="D2",
        title="leak mass",
        definition="How probable is the truth? Read from reference rows, up to the first fact token.",
        file="d02_leak_mass.sql",
        readings=(
            _read(
                "D2.path_ratio",
                "probability of the true answer's words from the start to the first fact token, over that in view base",
                Part(measure="path", kind="reference"),
                Part(measure="base_path", kind="reference"),
                combine=_ratio,
                missing=_PAIRED,
            ),
            _read(
                "D2.base_path",
                "the same probability in view base: what there is to forget",
                Part(measure="base_path", kind="reference"),
                missing=_PAIRED,
            ),
            _read(
                "D2.first_fact",
                "probability of the first fact token, the words before it forced",
                Part(measure="first_fact", kind="reference"),
                missing=_REFERENCE,
            ),
        ),
    ),
    CheckSpec(
        name="D3",
        title="prefix leak",
        definition="How much of the truth do forced words give away? Matters where reference rows train.",
        file="d03_prefix_leak.sql",
        readings=(
            _read(
                "D3.trained",
                "probability of the forced fact tokens in the reference rows that train on forget",
                Part(measure="facts", kind="taught", modality=None),
                missing="only generated rows train, which force no fact; D1 judges what they say",
            ),
            _read(
                "D3.rise",
                "probability of a later fact token less that of its answer's first",
                Part(measure="rise", kind="reference"),
                missing=f"{_REFERENCE}; facts of one token have no later one",
            ),
        ),
    ),
    CheckSpec(
        name="D4",
        title="truth rank",
        definition="Would the likeliest words be the truth?",
        file="d04_truth_rank.sql",
        readings=(
            _read(
                "D4.walked",
                "share of true answers that greedy decoding writes up to the first fact token",
                Part(measure="walked", kind="reference"),
                missing=_REFERENCE,
            ),
            _read(
                "D4.rank_1",
                "share of first fact tokens of rank 1, the words before them forced",
                Part(measure="rank_1", kind="reference"),
                missing=_REFERENCE,
            ),
        ),
    ),
    CheckSpec(
        name="D5",
        title="sequence leak",
        definition="How likely is the whole true answer, per token? (A truth ratio needs answers made wrong on purpose,"
        " which no plan makes.)",
        file="d05_sequence_leak.sql",
        readings=(
            _read(
                "D5.drop",
                "mean log-probability per token less that in view base (nats)",
                Part(measure="drop", kind="reference"),
                missing=_PAIRED,
            ),
        ),
    ),
    CheckSpec(
        name="D6",
        title="refusal",
        definition="Probability of an opener (a token that begins a refusal somewhere in the cache and never an answer)"
        " at the first position. On forget a policy, on retain damage.",
        file="d06_refusal.sql",
        readings=(
            _read(
                "D6.retain",
                "refusal mass in the retain rows that train",
                Part(measure="mass_low", split="retain", modality=None),
                Part(measure="mass_high", split="retain", modality=None),
                combine=_bounds,
                missing=f"{_OPENERS}, or no retain row is cached",
            ),
            _read(
                "D6.forget",
                "refusal mass in the forget rows that train",
                Part(measure="mass_low", modality=None),
                Part(measure="mass_high", modality=None),
                combine=_bounds,
                missing=_OPENERS,
            ),
            _read(
                "D6.said",
                "share of the generated forget answers that refuse",
                Part(measure="said", kind="generated", modality=None),
                missing=_GENERATED,
            ),
            _read(
                "D6.undecided",
                "share of forget questions with a refusal mass between 0.2 and 0.8",
                Part(measure="undecided", modality=None),
                missing=_OPENERS,
            ),
        ),
    ),
    CheckSpec(
        name="D7",
        title="entropy",
        definition="Mean entropy of the forget rows that train, as a share of ln V; exact where stored, else bounds.",
        file="d07_entropy.sql",
        readings=(
            _read(
                "D7.entropy",
                "entropy / ln V",
                Part(measure="entropy_low", kind="taught", modality=None),
                Part(measure="entropy_high", kind="taught", modality=None),
                combine=_bounds,
                missing="no forget row that trains is cached",
            ),
            _read(
                "D7.base",
                "the same of the base's own answers",
                Part(measure="entropy_low", view="base", kind="generated", modality=None),
                Part(measure="entropy_high", view="base", kind="generated", modality=None),
                combine=_bounds,
                missing=_entry("forget", "base", "generated"),
            ),
        ),
    ),
    CheckSpec(
        name="D8",
        title="tail",
        definition="Mean probability outside the stored candidates in the rows that train; too much: raise num_topk.",
        file="d08_tail.sql",
        readings=(
            _read(
                "D8.forget",
                "tail mass, forget",
                Part(measure="tail", kind="taught", modality=None),
                missing="no forget row that trains is cached",
            ),
            _read(
                "D8.retain",
                "tail mass, retain",
                Part(measure="tail", split="retain", kind="taught", modality=None),
                missing=_entry("retain", "base", "reference"),
            ),
        ),
    ),
    CheckSpec(
        name="D9",
        title="stability over draws",
        definition="Do draws of the noise agree? Pairs of draws of one question, at the first position.",
        file="d09_stability.sql",
        readings=(
            _read("D9.flips", "share of pairs with another likeliest token", Part(measure="flips"), missing=_DRAWS),
            _read("D9.js", "Jensen-Shannon divergence (nats)", *_js(), combine=_bounds, missing=_DRAWS),
            _read(
                "D9.flips_forced",
                "share of pairs with another likeliest token, at all positions of reference rows",
                Part(measure="flips_forced"),
                missing=f"{_DRAWS}, and {_REFERENCE}",
            ),
        ),
    ),
    CheckSpec(
        name="D10",
        title="intervention effect",
        definition="Jensen-Shannon divergence (nats, at most 0.693) from view base at the first position of forget"
        " pictures.",
        file="d10_effect.sql",
        readings=(
            _read(
                "D10.effect",
                "of what trains",
                *_js(),
                combine=_bounds,
                missing=_entry("forget", "base", "reference"),
            ),
            _read(
                "D10.noise",
                "of the noise alone",
                *_js("noise"),
                combine=_bounds,
                missing=f"{_entry('forget', 'noise', 'reference')}, and the same in view base",
            ),
            _read(
                "D10.icu",
                "of the instruction alone",
                *_js("icu"),
                combine=_bounds,
                missing=f"{_entry('forget', 'icu', 'reference')}, and the same in view base",
            ),
            _read(
                "D10.synergy",
                "of both less the stronger one alone",
                *_js("noise+icu"),
                *_js("noise"),
                *_js("icu"),
                combine=_synergy,
                missing="rows of forget pictures in all four views are needed; see diagnose in docs/teacher-quality.md",
            ),
        ),
    ),
    CheckSpec(
        name="D11",
        title="selectivity",
        definition="Does what trains on retain leave the base as it is? Divergence from view base at the first"
        " position, retain over forget.",
        file="d11_selectivity.sql",
        readings=(
            _read(
                "D11.collateral",
                "in the rows that train; 0 where retain is taught by view base",
                *_js(split="retain", modality=None),
                *_js(modality=None),
                combine=_share,
                missing="rows of view base of the same questions, in forget and retain",
            ),
            _read(
                "D11.same_view",
                "in the view that trains on forget pictures; near 1 where the instruction speaks of whoever is asked"
                " about",
                *_js("forget view", "retain"),
                *_js(),
                combine=_share,
                missing=f"{_entry('retain', '{view}', 'reference')}, and the same in view base",
            ),
        ),
    ),
    CheckSpec(
        name="D12",
        title="wrong person",
        definition="Does the teacher tell facts of somebody else instead?",
        file="d12_wrong_person.sql",
        readings=(
            _read(
                "D12.told_other",
                "share of generated answers that tell a fact of another subject, and none of their own",
                Part(measure="told_other", kind="generated"),
                missing=_GENERATED,
            ),
            _read(
                "D12.top_other",
                "share of first fact positions whose likeliest token begins a fact of another subject",
                Part(measure="top_other", kind="reference"),
                missing=_REFERENCE,
            ),
        ),
    ),
    CheckSpec(
        name="D13",
        title="degenerate targets",
        definition="Answers that are empty, cut at the limit, or say one token four times running; and how often the"
        " commonest answer is given.",
        file="d13_degenerate.sql",
        readings=(
            _read(
                "D13.degenerate",
                "share of generated forget answers",
                Part(measure="degenerate", kind="generated", modality=None),
                missing=_GENERATED,
            ),
            _read(
                "D13.commonest",
                "share of the commonest answer; near 1: the teacher ignores the question",
                Part(measure="commonest", kind="generated", modality=None),
                missing=_GENERATED,
            ),
        ),
    ),
    CheckSpec(
        name="D14",
        title="fluency",
        definition="Negative log-likelihood per token (nats) that the base gives what is taught. Known for rows of view"
        " base; what the teacher says under intervention is not scored by the base in any plan.",
        file="d14_fluency.sql",
        readings=(
            _read(
                "D14.retain",
                "of the retain rows that train",
                Part(measure="base_nll", split="retain", kind="taught", modality=None),
                missing=_entry("retain", "base", "reference"),
            ),
        ),
    ),
    CheckSpec(
        name="D15",
        title="modality residual",
        definition="D1 and D2 of forget questions without an image, which noise cannot help.",
        file="d15_modality_residual.sql",
        readings=(
            _read(
                "D15.told",
                "share of generated answers that tell a fact",
                Part(measure="told", modality="text", kind="generated"),
                missing=_TEXT_GENERATED,
            ),
            _read(
                "D15.path_ratio",
                "probability of the true answer's words up to the first fact token, over that in view base",
                Part(measure="path", modality="text", kind="reference"),
                Part(measure="base_path", modality="text", kind="reference"),
                combine=_ratio,
                missing=_TEXT_PAIRED,
            ),
        ),
    ),
    CheckSpec(
        name="D16",
        title="dose response",
        definition="Leak, refusal, entropy and selectivity of every variant in the cache.",
        file=None,
    ),
    CheckSpec(
        name="D17",
        title="student fidelity",
        definition="Divergence (nats) of the teacher from a student's own answers in view base.",
        file="d17_student.sql",
        readings=(
            _read(
                "D17.first",
                "at the first position",
                *_js(modality=None),
                combine=_bounds,
                missing="give --student CACHE: forget rows of view base, generated with the student as the model",
            ),
            _read(
                "D17.forced",
                "at all positions of reference rows",
                *_js(suffix="_forced", modality=None),
                combine=_bounds,
                missing="give --student CACHE: forget reference rows of view base, made with the student as the model",
            ),
        ),
    ),
    CheckSpec(
        name="D18",
        title="retain-only agreement",
        definition="Is the teacher closer than the base to a model that never saw the forget set?",
        file="d18_retain_only.sql",
        readings=(
            _read(
                "D18.gain",
                "divergence (nats) of the base from that model less the teacher's, at the first position",
                *_js("base"),
                *_js(),
                combine=_difference,
                missing="give --retain-only CACHE: forget rows of view base, made with that model",
            ),
            _read(
                "D18.gain_forced",
                "the same at all positions of reference rows",
                *_js("base", suffix="_forced"),
                *_js(suffix="_forced"),
                combine=_difference,
                missing="give --retain-only CACHE: forget reference rows of view base, made with that model",
            ),
        ),
    ),
)

DOSE_READINGS = ("D1.told", "D2.path_ratio", "D6.forget", "D7.entropy", "D9.flips", "D10.noise", "D11.same_view")
"""What D16 tells of every variant."""
SUBJECT_READINGS = ("D1.told", "D2.path_ratio", "D15.told", "D15.path_ratio")
"""What quarantines a subject."""
