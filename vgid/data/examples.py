"""`Example`: the one record that readers produce and everything after them consumes.

Nothing past a reader knows a data set's own columns. What this gives up: fields a data set has and no part of vgid
uses are not carried along; `example_id` leads back to the source.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

Modality = Literal["image", "text"]
Exposure = Literal["trained", "heldout"]
Image = bytes | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question with its reference answer."""

    example_id: str
    """Stable identity: data set, source id, question index (and photo). Free of noise, prompt and model."""
    split: str
    """`forget`, `retain`, `outsiders`, `instruct`, `test`, …"""
    subject_id: str
    """Whose knowledge the example carries; confidence intervals are clustered by it."""
    subject_name: str | None = None
    """What people call the subject, for instructions that name it; part of a target only through such a text."""
    task: str
    """`facts`, `perception`, `classification`, `cloze`, …"""
    modality: Modality
    image: Image | None
    """Encoded image bytes, or a resolved path under the data root, or None for text-only questions."""
    photo: Exposure | None = None
    """Whether this portrait was in the base model's training data, where the data set says so."""
    phrasing: Exposure | None = None
    """Whether this wording was in the base model's training data, where the data set says so."""
    question: str
    answer: str
    facts: tuple[str, ...] = ()
    """The strings that must not leak; each reader states its rule for finding them."""
    paraphrases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    """Answer options in letter order (A, B, …) for `classification`; `answer` is then the letter."""

    def __post_init__(self) -> None:
        assert (self.image is None) == (self.modality == "text"), f"{self.example_id}: modality and image disagree"

    def content_sha256(self) -> str:
        """Hash of everything in the example that a target depends on, image bytes excluded (they have their own)."""
        fields = (self.example_id, self.split, self.subject_id, self.task, self.modality, self.question, self.answer)
        return sha256(json.dumps([*fields, list(self.facts)], ensure_ascii=False).encode()).hexdigest()
