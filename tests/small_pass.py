"""A teacher pass of a few people of the shipped world, small enough to be run by a dozen processes in a test."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from small_data import TRAIN_FILE, write_jsonl

from vgid.cache.reader import open_cache
from vgid.cache.schema import Target
from vgid.data.fictitious import shipped_base, shipped_world

TOLERANCE_NATS = 1e-4
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def write_pass(folder: Path, *, photos: int, questions: int) -> Path:
    """Data and recipe; gives the recipe. So many photos of both splits, so many questions about each."""
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for split in ("forget", "retain"):
        for number, photo in enumerate(pq.read_table(shipped_world() / split / TRAIN_FILE).to_pylist()[:photos]):
            image = folder / f"{split}{number}.png"
            image.write_bytes(photo["image"]["bytes"])
            items = [item for item in json.loads(photo["metadata"]) if item["Task"] == "facts"]
            for kind, path in (("Image_Textual", image.name), ("Pure_Text", "")):
                asked = [item for item in items if (item["Type"], item["Phrasing"]) == (kind, "trained")]
                rows += [
                    {
                        "image": path,
                        "question": item["Question"],
                        "answer": item["Answer"],
                        "subject": photo["ID"],
                        "split": split,
                        "facts": item["Facts"],
                    }
                    for item in asked[:questions]
                ]
    write_jsonl(folder / "questions.jsonl", rows)
    recipe = yaml.safe_load(Path("vgid/pipeline/recipes/fictitious.yaml").read_text())
    recipe |= {"model": str(shipped_base()), "data": {"sources": [{"path": "questions.jsonl"}]}}
    recipe["teacher"] |= {"plan": None, "num_topk": 8}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def rows_of(cache: Path) -> dict[str, Target]:
    """Every row by id, none of them twice."""
    targets = list(open_cache(cache).iter_targets())
    assert len({target.target_id for target in targets}) == len(targets), "a row is doubled"
    return {target.target_id: target for target in targets}


def assert_same_rows(ours: Mapping[str, Target], theirs: Mapping[str, Target]) -> None:
    """The same ids, tokens, pixels and prompts, and log-probabilities within what an engine's batching changes."""
    assert ours.keys() == theirs.keys()
    for target_id, row in ours.items():
        other = theirs[target_id]
        assert np.array_equal(row.token_ids, other.token_ids)
        assert row.pixel_sha256 == other.pixel_sha256 and row.prompt_sha256 == other.prompt_sha256
        assert np.abs(row.token_logprob - other.token_logprob).max() <= TOLERANCE_NATS
