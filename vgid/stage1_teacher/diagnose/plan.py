"""What a cache must hold beyond a training plan so that every check has something to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from vgid.data.examples import Example
from vgid.stage1_teacher.settings import PlanEntry

DRAWS = 3
"""Noise draws per example that stability is judged by."""


def diagnostic_plan(training: Iterable[PlanEntry], examples: Sequence[Example]) -> tuple[PlanEntry, ...]:
    """The entries that make a cache fully diagnosable.

    Forget questions in every view that applies, generated and reference; retain questions as the base's reference
    rows and, to see what the intervention does to people who stay, under the views that train on forget.

    Args:
        training: The plan that trains.
        examples: The data; entries that match nothing are left out.
    """
    known = list(training)
    forget, retain = ([each for each in known if each.split == split] for split in ("forget", "retain"))
    entries = [
        each.model_copy(update={"view": view, "response_kind": kind, "modality": modality})
        for each in forget
        for modality in ((each.modality,) if each.modality else ("image", "text"))
        for view in (("base", "noise", "icu", "noise+icu") if modality == "image" else ("base", "icu"))
        for kind in ("generated", "reference")
    ]
    entries += [
        each.model_copy(update={"view": view, "response_kind": "reference"})
        for each in retain
        for view in dict.fromkeys(["base", *(one.view for one in forget if each.modality in (None, one.modality))])
    ]
    trainable = [each for each in examples if "heldout" not in (each.photo, each.phrasing)]
    return tuple(
        entry
        for entry in dict.fromkeys(entries)
        if any(entry.matches(split=e.split, modality=e.modality, task=e.task) for e in trainable)
    )


def sample_subjects(examples: Iterable[Example], count: int) -> list[Example]:
    """The examples of `count` subjects of forget and as many of retain, chosen by the hash of their names."""
    known = list(examples)
    chosen = {
        (split, subject)
        for split in ("forget", "retain")
        for subject in sorted(
            {each.subject_id for each in known if each.split == split},
            key=lambda name: sha256(name.encode()).hexdigest(),
        )[:count]
    }
    return [each for each in known if (each.split, each.subject_id) in chosen]
