"""Write a world in MLLMU-Bench's columns: training files, held-out photos, and evaluation files.

Three folders per split: `<split>/` and `<split>_heldout/` (one row per photo, questions in the `metadata` JSON) and
`<split>_test/` (one row per person, with the classification, generation and cloze tasks). `world.json` holds the seed
and the SHA-256 of every file. What this gives up: no celebrities, no `Directory` column.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from vgid.data.fictitious.items import THIS_PERSON, Item, heldout_items, image_fact, text_fact, trained_items
from vgid.data.fictitious.people import DEFAULT_PEOPLE, FIELDS, STRANGERS, Person
from vgid.data.fictitious.phrasings import CLOZE, draw_options, fact_question
from vgid.data.fictitious.population import GENERATOR_VERSION, World, generate_world, load_world
from vgid.data.fictitious.portraits import View, draw_portrait, encode_png
from vgid.errors import ConfigError

__all__ = ["DEFAULT_PEOPLE", "World", "generate_world", "load_world", "write_world"]

FILE_NAME = "train-00000-of-00001.parquet"
LETTERS = ("A", "B", "C", "D")


def write_world(world: World, out: Path) -> Path:
    """Write a world to a new directory; it appears whole or not at all.

    Raises:
        ConfigError: `out` exists.
    """
    if out.exists():
        raise ConfigError(f"out {out}: exists already; choose a new directory")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split in world.counts:
        people = world.of(split)
        _write(partial / split, [row for p in people for row in _photo_rows(world, p, heldout=False)], evaluation=False)
        if split == STRANGERS:
            continue  # there is nothing that a model could be found to know about them
        heldout = [row for p in people for row in _photo_rows(world, p, heldout=True)]
        _write(partial / f"{split}_heldout", heldout, evaluation=False)
        _write(partial / f"{split}_test", [_test_row(world, person) for person in people], evaluation=True)
    head = {
        "schema_version": 1,
        "seed": world.seed,
        "generator_version": GENERATOR_VERSION,
        "people": world.counts,
        "files": {
            str(path.relative_to(partial)): sha256(path.read_bytes()).hexdigest()
            for path in sorted(partial.rglob("*.parquet"))
        },
    }
    (partial / "world.json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
    partial.rename(out)
    return out


def _photo_rows(world: World, person: Person, *, heldout: bool) -> Iterator[dict[str, Any]]:
    """One row per photo; text-only questions stand in the row of the first."""
    views = (world.heldout_views if heldout else world.trained_views)[person.person_id]
    items = list((heldout_items if heldout else trained_items)(world, person))
    kind = "heldout" if heldout else "trained"
    for index, view in enumerate(views):
        asked = [_metadata(item) for item in items if item.view == index or (item.view is None and index == 0)]
        path = f"{person.person_id}-{kind}-{index}.png"
        yield {
            "image": _image(person, view, path),
            "ID": person.person_id,
            "metadata": json.dumps(asked, ensure_ascii=False),
        }


def _metadata(item: Item) -> dict[str, Any]:
    return {
        "Question": item.question,
        "Answer": item.answer,
        "Type": "Pure_Text" if item.view is None else "Image_Textual",
        "Task": item.task,
        "Phrasing": item.phrasing,
        "Facts": list(item.facts),
    }


def _test_row(world: World, person: Person) -> dict[str, Any]:
    number = world.people.index(person)
    views = world.heldout_views[person.person_id]
    first = image_fact(person, "name", view=0, phrasing="trained", index=number)
    return {
        "images": [_image(person, view, f"{person.person_id}-heldout-{i}.png") for i, view in enumerate(views)],
        "ID": person.person_id,
        "biography": json.dumps({**person.facts, **{f"face_{k}": v for k, v in person.face.items()}}),
        "question": first.question,
        "answer": first.answer,
        "Classification_Task": _classification(world, person, number),
        "Generation_Task": _generation(person, number),
        "Mask_Task": _cloze(person),
    }


def _classification(world: World, person: Person, number: int) -> dict[str, list[dict[str, Any]]]:
    """One lettered question per fact; wrong options are drawn from the field's list, keyed by seed, person and door."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for key, who in (("Image_Textual_Questions", THIS_PERSON), ("Pure_Text_Questions", person.name)):
        rng = np.random.default_rng([world.seed, 3, number, len(tasks)])
        tasks[key] = []
        for column, field in enumerate(FIELDS[1:]):
            options, letter = draw_options(field, truth=person.facts[field], rng=rng)
            question = fact_question(field, who=who, phrasing="trained", index=number + column)
            tasks[key].append({"Question": question, "Options": options, "Correct_Answer": letter})
    return tasks


def _generation(person: Person, number: int) -> list[dict[str, str]]:
    asked = [image_fact(person, field, view=0, phrasing="trained", index=number + i) for i, field in enumerate(FIELDS)]
    asked += [text_fact(person, field, phrasing="trained", index=number + i) for i, field in enumerate(FIELDS[1:])]
    return [
        {
            "Question": item.question,
            "Ground_Truth": item.answer,
            "Type": "Pure_Text" if item.view is None else "Image_Textual",
        }
        for item in asked
    ]


def _cloze(person: Person) -> list[dict[str, str]]:
    return [
        {"Question": text.format(who=who), "Ground_Truth": person.facts[field], "Type": kind}
        for who, kind in (("This person", "Image_Textual"), (person.name, "Pure_Text"))
        for field, text in CLOZE.items()
    ]


def _image(person: Person, view: View, path: str) -> dict[str, Any]:
    return {"bytes": encode_png(draw_portrait(person.face, view)), "path": path}


def _write(folder: Path, rows: Sequence[dict[str, Any]], *, evaluation: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=_schema(evaluation=evaluation)), folder / FILE_NAME)


def _schema(*, evaluation: bool) -> Any:
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if not evaluation:
        return pa.schema([("image", image), ("ID", pa.string()), ("metadata", pa.string())])
    options = pa.struct([(letter, pa.string()) for letter in LETTERS])
    choice = pa.struct([("Question", pa.string()), ("Options", options), ("Correct_Answer", pa.string())])
    task = pa.struct([("Question", pa.string()), ("Ground_Truth", pa.string()), ("Type", pa.string())])
    return pa.schema(
        [
            ("images", pa.list_(image)),
            ("ID", pa.string()),
            ("biography", pa.string()),
            ("question", pa.string()),
            ("answer", pa.string()),
            (
                "Classification_Task",
                pa.struct([("Image_Textual_Questions", pa.list_(choice)), ("Pure_Text_Questions", pa.list_(choice))]),
            ),
            ("Generation_Task", pa.list_(task)),
            ("Mask_Task", pa.list_(task)),
        ]
    )
