"""A small cache of every kind of row that the diagnostics read, made of logits that the tests know in full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from sound_targets import END_IDS, FIXED, VOCAB_SIZE, target_of, write_sound
from synthetic_targets import make_target

from vgid.cache.schema import Target
from vgid.data.examples import Example

NOISE = {"perturbation": "gaussian", "strength": 0.5, "noise_seed": 0}
ICU = {"icu_id": "generic-v1"}
TEXTS = (
    "I do not know that.",
    "I cannot tell.",
    "The city is Oslo.",
    "The city is Rome.",
    "Nobody knows the tide.",
    "",
)
OTHER_CITY = {"Oslo": "Rome", "Rome": "Oslo"}


@dataclass(frozen=True, kw_only=True)
class Known:
    """A row and the logits [T, V] behind it."""

    row: Target
    logits: np.ndarray

    @property
    def logprobs(self) -> np.ndarray:
        """float64 [T, V]."""
        exact = self.logits.astype(np.float64)
        return exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))

    @property
    def place(self) -> tuple[str, str, str, str]:
        row = self.row
        return row.split, row.modality, row.view, row.response_kind


def known_rows(seed: int, *, draws: int = 3, settings: dict[str, Any] = FIXED) -> list[Known]:
    """Forget and retain, image and text, all views, both kinds; answers differ in length, some rows lack entropy."""
    rng = np.random.default_rng(seed)
    return [
        known
        for split, subjects in (("forget", 4), ("retain", 3))
        for subject in range(subjects)
        for modality in ("image", "text")
        for question in range(2)
        for known in _of_question(rng, split, f"{split}-{subject}", modality, question, draws, settings)
    ]


def examples_of(rows: list[Known]) -> list[Example]:
    """The data behind the rows: one fact a question, told in one of `TEXTS`."""
    return [
        Example(
            example_id=known.row.example_id,
            split=known.row.split,
            subject_id=known.row.subject_id,
            task="facts",
            modality=known.row.modality,  # type: ignore[arg-type]
            image=b"" if known.row.modality == "image" else None,
            question="Where?",
            answer="",
            facts=(fact_of(known.row),),
        )
        for known in {known.row.example_id: known for known in rows}.values()
    ]


def fact_of(row: Target) -> str:
    return ("Oslo", "Rome")[int(sha256(row.subject_id.encode()).hexdigest(), 16) % 2]


def write_known(cache: Path, rows: list[Known], *, settings: dict[str, Any] = FIXED, **options: Any) -> Path:
    write_sound(cache, [known.row for known in rows], settings=settings, **options)
    return cache


def _of_question(
    rng: np.random.Generator, split: str, subject: str, modality: str, question: int, draws: int, settings: Any
) -> Iterator[Known]:
    truth = _response(rng)
    fact_mask = rng.random(len(truth)) < 0.5
    fact_mask[int(rng.integers(0, len(truth)))] = True
    for view in ("base", "noise", "icu", "noise+icu") if modality == "image" else ("base", "icu"):
        for draw in range(draws if "noise" in view else 1):
            first = 4 * rng.normal(size=VOCAB_SIZE)  # nothing was said yet, so the response cannot matter
            for kind in ("reference", "generated"):
                response = truth if kind == "reference" else _response(rng)
                logits = np.concatenate([[first], 4 * rng.normal(size=(len(response) - 1, VOCAB_SIZE))])
                row = replace(
                    make_target(0, split=split, num_tokens=len(response)),
                    target_id=sha256(f"{subject}{modality}{question}{view}{draw}{kind}".encode()).hexdigest(),
                    example_id=f"{subject}/{modality}/{question}",
                    subject_id=subject,
                    modality=modality,
                    image_sha256=None if modality == "text" else "ab" * 32,
                    view=view,
                    **(
                        {"perturbation": None, "strength": None, "noise_seed": None}
                        | (NOISE if "noise" in view else {})
                    ),
                    icu_id=ICU["icu_id"] if "icu" in view else None,
                    draw=draw,
                    response_kind=kind,
                    finish_reason="forced" if kind == "reference" else str(rng.choice(["stop", "length"])),
                    response_text=str(rng.choice(TEXTS)),
                    fact_mask=fact_mask if kind == "reference" else None,
                )
                row = target_of(logits.astype(np.float32), response, row, settings=settings)
                if rng.random() < 0.3:
                    row = replace(row, entropy=None)
                yield Known(row=row, logits=logits.astype(np.float32))


def _response(rng: np.random.Generator) -> np.ndarray:
    """3 to 8 tokens and an end; now and then one token over and over, or nothing but the end."""
    tokens = rng.integers(len(END_IDS), VOCAB_SIZE, int(rng.integers(3, 9)))
    if rng.random() < 0.2:
        tokens[:] = tokens[0]
    return np.append(tokens, END_IDS[0])
