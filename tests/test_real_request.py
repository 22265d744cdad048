"""docs/real-request.md, run word for word: from two photos and a name to a student, on the shipped base."""

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from doc_pages import ROOT, blocks, commands, run

from vgid.data.fictitious import shipped_world

PAGE = ROOT / "docs" / "real-request.md"
HUB_MODEL, NAME, PHOTOS = "Qwen/Qwen2-VL-2B-Instruct", "Mara Quill", ("mara-1.jpg", "mara-2.jpg")


def portraits(split: str) -> list[dict[str, Any]]:
    """Rows of the shipped world, its people side by side."""
    return pq.read_table(shipped_world() / split / "train-00000-of-00001.parquet").to_pylist()


def somebody(folder: Path) -> str:
    """Put two photos of a person where the page expects them, and return the name."""
    first, *others = portraits("forget")
    second = next(row for row in others if row["ID"] == first["ID"])
    for name, row in zip(PHOTOS, (first, second), strict=True):
        (folder / name).write_bytes(row["image"]["bytes"])
    items = json.loads(first["metadata"])
    return next(item["Facts"][0] for item in items if item["Question"] == "What is the name of this person?")


def bring_what_must_stay(folder: Path) -> None:
    """Six people to keep and six strangers, in the columns of the example, and the recipe's lines uncommented."""
    (example,) = [json.loads(block) for block in blocks(PAGE, "json")]
    lines = []
    for split in ("retain", "strangers"):
        for number, row in enumerate(portraits(split)[:24:4]):
            image = folder / "photos" / f"{split}-{number}.png"
            image.write_bytes(row["image"]["bytes"])
            for item in json.loads(row["metadata"]):
                values = {
                    "image": f"photos/{image.name}" if item["Type"] == "Image_Textual" else "",
                    "question": item["Question"],
                    "answer": item["Answer"],
                    "subject": row["ID"],
                    "split": split,
                }
                assert values.keys() == example.keys()
                lines.append(json.dumps(values) + "\n")
    (folder / "retain.jsonl").write_text("".join(lines))
    recipe = (folder / "recipe.yaml").read_text()
    assert recipe.count("# - {path: retain.jsonl}") == 1 and recipe.count("# - {split: strangers") == 2
    recipe = recipe.replace("# - {", "- {").replace("epochs: 3", "max_steps: 2")  # two steps: this is a test
    (folder / "recipe.yaml").write_text(recipe)


@pytest.mark.slow
def test_the_commands_of_the_page_lead_from_photos_and_a_name_to_a_student(tmp_path):
    name = somebody(tmp_path)
    ran = []
    for arguments in commands(PAGE):
        here = [word.replace(HUB_MODEL, "fictitious:base").replace(NAME, name) for word in arguments]
        if arguments[:2] in (["data", "questions"], ["teacher", "generate"]) or arguments[0] == "evaluate":
            here += ["--engine", "transformers"]
        if arguments[0] == "evaluate":
            here += ["--per-cell", "1"]
        if arguments[:2] == ["data", "check"] and ran[-1:] != [["data", "questions"]]:
            early = run(["teacher", "generate", "request/recipe.yaml", "--out", "early", "--dry-run"], tmp_path)
            assert early.returncode == 2 and '"retain"' in early.stderr and not (tmp_path / "early").exists()
            bring_what_must_stay(tmp_path / "request")
        done = run(here, tmp_path)
        assert done.returncode == 0, f"vgid {shlex.join(here)}\n{done.stderr[-2000:]}"
        ran.append(arguments[:2])
    assert {"questions", "check", "preview", "generate"} <= {words[1] for words in ran}
    metrics = json.loads((tmp_path / "results" / "results.json").read_text())["metrics"]
    leaks = [
        row["value"]
        for row in metrics
        if row["metric"] == "leak" and row["model"] == "base" and row["split"] == "forget"
    ]
    assert leaks and max(leaks) > 0.9  # the facts that were drafted are those the base gives away
