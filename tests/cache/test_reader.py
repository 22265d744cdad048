from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_targets import IDENTITY, assert_same_targets, make_target

from vgid.cache.manifest import commit
from vgid.cache.reader import open_cache
from vgid.cache.store import LocalStore
from vgid.cache.writer import CacheWriter, write_part
from vgid.errors import CacheError

FORGET = [make_target(index) for index in range(5)]
RETAIN = [make_target(index, split="retain") for index in range(4)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    with CacheWriter(tmp_path, **IDENTITY, rows_per_part=3) as writer:
        for row in FORGET + RETAIN:
            writer.add(row)
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, FORGET + RETAIN),
        ({"split": "retain"}, RETAIN),
        ({"view": "noise+icu"}, FORGET),
        ({"response_kind": "reference"}, RETAIN),
        ({"split": "forget", "response_kind": "reference"}, []),
        ({"split": "outsiders"}, []),
    ],
)
def test_targets_are_chosen_by_split_view_and_response_kind(cache, wanted, expected):
    assert_same_targets(open_cache(cache).load_targets(**wanted), expected)


def test_columns_are_read_by_name(cache):
    table = open_cache(cache).rows(["example_id", "token_ids"])

    assert table.column_names == ["example_id", "token_ids"]
    assert sorted(table["example_id"].to_pylist()) == sorted(row.example_id for row in FORGET + RETAIN)
    with pytest.raises(CacheError, match="'nope'"):
        open_cache(cache).rows(["nope"])


def test_a_cache_without_parts_has_no_rows(tmp_path):
    CacheWriter(tmp_path, **IDENTITY)

    cache = open_cache(tmp_path)

    assert (list(cache.iter_targets()), cache.load_targets()) == ([], [])
    assert cache.rows(["target_id"]).schema == pa.schema([pa.field("target_id", pa.string(), nullable=False)])


def test_an_open_cache_does_not_change_under_later_commits(cache):
    opened = open_cache(cache)
    with CacheWriter(cache, **IDENTITY) as writer:
        writer.add(make_target(99))

    assert len(list(opened.iter_targets())) == 9
    assert len(list(open_cache(cache).iter_targets())) == 10


def test_files_that_no_manifest_names_are_not_read(cache):
    write_part(LocalStore(cache), [make_target(77)])

    assert_same_targets(open_cache(cache).load_targets(), FORGET + RETAIN)


@pytest.mark.parametrize("exists", [True, False])
def test_what_is_no_cache_says_how_to_make_one(tmp_path, exists):
    path = tmp_path if exists else tmp_path / "missing"

    with pytest.raises(CacheError, match=r"vgid teacher generate RECIPE --out"):
        open_cache(path)


def test_a_missing_part_is_an_error_that_names_it(cache):
    part = open_cache(cache).manifest.parts[1]
    (cache / part.path).unlink()

    with pytest.raises(CacheError, match=Path(part.path).name):
        list(open_cache(cache).iter_targets())


@pytest.mark.parametrize("change", ["columns", "rows"])
def test_a_part_that_is_intact_but_not_what_the_manifest_says_is_refused(tmp_path, change):
    part = write_part(LocalStore(tmp_path), FORGET)
    path = tmp_path / part.path
    if change == "columns":
        pq.write_table(pq.read_table(path).drop_columns(["entropy"]), path)
    content = path.read_bytes()
    rows = part.rows + (change == "rows")
    wrong = replace(part, sha256=sha256(content).hexdigest(), rows=rows)
    commit(LocalStore(tmp_path), **IDENTITY, add=lambda _: [wrong])

    with pytest.raises(CacheError, match=path.name):
        list(open_cache(tmp_path).iter_targets())
