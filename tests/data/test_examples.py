"""The record that readers produce."""

import dataclasses
from pathlib import Path

import pytest

from vgid.data.examples import Example

EXAMPLE = Example(
    example_id="forget/p1/0",
    split="forget",
    subject_id="p1",
    task="facts",
    modality="image",
    image=b"png",
    question="Who is this?",
    answer="Rosa Salgado.",
    facts=("Rosa Salgado",),
)


def test_an_example_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXAMPLE.answer = "nobody"  # type: ignore[misc]


@pytest.mark.parametrize(("modality", "image"), [("image", None), ("text", b"png"), ("text", Path("a.png"))])
def test_modality_and_image_agree(modality: str, image: bytes | Path | None) -> None:
    with pytest.raises(AssertionError, match="modality and image disagree"):
        dataclasses.replace(EXAMPLE, modality=modality, image=image)


@pytest.mark.parametrize(
    "change",
    [
        {"example_id": "forget/p1/1"},
        {"split": "retain"},
        {"subject_id": "p2"},
        {"task": "perception"},
        {"modality": "text", "image": None},
        {"question": "Who is that?"},
        {"answer": "Rosa"},
        {"facts": ()},
        {"facts": ("Rosa", "Salgado")},
    ],
)
def test_the_content_hash_depends_on_every_field_of_the_content(change: dict[str, object]) -> None:
    assert dataclasses.replace(EXAMPLE, **change).content_sha256() != EXAMPLE.content_sha256()


def test_the_content_hash_does_not_depend_on_where_the_image_is() -> None:
    moved = dataclasses.replace(EXAMPLE, image=Path("elsewhere.png"), photo="trained", phrasing="heldout")
    assert moved.content_sha256() == EXAMPLE.content_sha256()


def test_the_content_hash_is_pinned() -> None:
    """Targets in caches are keyed by it: a change here orphans every cache."""
    assert EXAMPLE.content_sha256() == "20a5c5ab94d60984f8ccbe53daa71e307ff5eabd464fa684913cb7450dbf11a9"
