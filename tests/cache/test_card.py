from __future__ import annotations

import pytest
import yaml
from synthetic_targets import IDENTITY, make_target

from vgid.cache.card import card_text, write_card
from vgid.cache.reader import open_cache
from vgid.cache.store import LocalStore
from vgid.cache.writer import CacheWriter, write_part


@pytest.fixture
def cache(tmp_path):
    with CacheWriter(tmp_path / "cache", **IDENTITY, rows_per_part=3) as writer:
        for index in range(5):
            writer.add(make_target(index))
            writer.add(make_target(index, split="retain"))
    return tmp_path / "cache"


def head(cache):
    return yaml.safe_load((cache / "README.md").read_text().split("---\n")[1])


def test_the_card_lists_exactly_the_committed_parts_by_split(cache):
    write_part(LocalStore(cache), [make_target(99)])
    write_card(LocalStore(cache))

    listed = {entry["split"]: entry["path"] for entry in head(cache)["configs"][0]["data_files"]}

    parts = open_cache(cache).manifest.parts
    assert listed == {split: [part.path for part in parts if part.split == split] for split in ("forget", "retain")}


def test_the_card_of_a_cache_without_parts_is_valid_yaml(tmp_path):
    CacheWriter(tmp_path, **IDENTITY)

    assert "configs" not in head(tmp_path)


def test_a_lost_or_edited_card_is_made_again(cache):
    for content in (None, "edited"):
        if content is None:
            (cache / "README.md").unlink()
        else:
            (cache / "README.md").write_text(content)
        CacheWriter(cache, **IDENTITY)
        assert (cache / "README.md").read_text() == card_text(open_cache(cache).manifest)


def test_datasets_reads_the_directory(cache, tmp_path):
    datasets = pytest.importorskip("datasets")
    write_part(LocalStore(cache), [make_target(99)])

    loaded = datasets.load_dataset(str(cache), cache_dir=str(tmp_path / "hf"))

    assert {split: len(rows) for split, rows in loaded.items()} == {"forget": 5, "retain": 5}
    expected = make_target(3)
    found = next(row for row in loaded["forget"] if row["target_id"] == expected.target_id)
    assert found["topk_ids"] == expected.topk_ids.tolist()
    assert found["topk_logprobs"] == expected.topk_logprobs.tolist()
    assert found["logsumexp"] is None
