"""What the card of a measured student says, and that the lineage still fits it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from vgid.pipeline.model_card import HEADING, add_evaluation
from vgid.stage2_distill.checkpoints import hash_files, write_json
from vgid.stage2_distill.lineage import FILE


def row(model: str, value: float, **place: Any) -> dict[str, Any]:
    where = {"split": "forget", "task": "facts", "modality": "image", "photo": None, "phrasing": None, **place}
    return {"metric": "leak", "model": model, "value": value, "n": 96, "low": value, "high": value, **where}


def student(folder: Path) -> Path:
    card = folder / "README.md"
    card.write_text("---\nbase_model: some/base\n---\n\n# Student\n\n## Provenance\n```yaml\nbase: some/base\n```\n")
    write_json(folder / FILE, {"base": "some/base", "files": hash_files(folder)})
    return card


def test_the_table_stands_behind_what_the_card_said_before(tmp_path: Path) -> None:
    card = student(tmp_path)
    before = card.read_text()
    add_evaluation(card, [row("base", 0.95), row("student", 0.01)])
    text = card.read_text()
    assert text.startswith(before.rstrip()) and ModelCard.load(card).data.to_dict()["base_model"] == "some/base"
    assert "| what | n | base | student |\n| --- | --- | --- | --- |\n" in text
    assert "| forget, image: leak | 96 | 0.95 [0.95, 0.95] | 0.01 [0.01, 0.01] |" in text


def test_a_second_evaluation_takes_the_place_of_the_first(tmp_path: Path) -> None:
    card = student(tmp_path)
    add_evaluation(card, [row("base", 0.95), row("student", 0.01)])
    once = card.read_text()
    add_evaluation(card, [row("base", 0.95), row("student", 0.5)])
    assert card.read_text().count(HEADING) == 1 and "0.50" in card.read_text() and "0.01" not in card.read_text()
    add_evaluation(card, [row("base", 0.95), row("student", 0.01)])
    assert card.read_text() == once


def test_the_lineage_knows_the_changed_card_and_keeps_the_rest(tmp_path: Path) -> None:
    card = student(tmp_path)
    add_evaluation(card, [row("base", 0.95), row("student", 0.01)])
    lineage = json.loads((tmp_path / FILE).read_text())
    assert lineage["base"] == "some/base"
    assert lineage["files"] == {name: value for name, value in hash_files(tmp_path).items() if name != FILE}
