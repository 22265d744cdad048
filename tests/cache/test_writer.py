from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from synthetic_targets import (
    IDENTITY,
    TEACHER,
    assert_same_targets,
    make_target,
    mixed_targets,
    realistic_targets,
    target_lists,
)

from vgid.cache.manifest import load_manifest
from vgid.cache.reader import open_cache
from vgid.cache.schema import SCHEMA, Target
from vgid.cache.store import LocalStore
from vgid.cache.writer import CacheWriter, write_part
from vgid.errors import CacheError

SCRIPT = Path(__file__).with_name("writing_process.py")
TESTS = Path(__file__).parents[1]


def write(cache: Path, rows: list[Target], **options) -> None:
    with CacheWriter(cache, **{**IDENTITY, **options}) as writer:
        for row in rows:
            writer.add(row)


def start(*arguments: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)], env=environment, stdout=subprocess.PIPE
    )


def files(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def part_files(cache: Path) -> set[str]:
    return {name for name in files(cache) if name.startswith("data/")}


@settings(max_examples=25, deadline=None)
@given(rows=target_lists())
def test_rows_come_back_from_disk_as_they_went_in(rows):
    with TemporaryDirectory() as directory:
        write(Path(directory) / "cache", rows, rows_per_part=2)

        assert_same_targets(list(open_cache(Path(directory) / "cache").iter_targets()), rows)


def test_a_full_row_at_64_candidates_costs_less_than_230_bytes_a_token(tmp_path):
    part = write_part(LocalStore(tmp_path), realistic_targets(128))

    assert part.tokens > 20_000
    assert part.bytes / part.tokens < 230


def test_page_checksums_are_written(tmp_path):
    part = write_part(LocalStore(tmp_path), [make_target(0, num_tokens=500)])
    path = tmp_path / part.path
    column = pq.ParquetFile(path).metadata.row_group(0).column(SCHEMA.names.index("topk_ids"))
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 20] ^= 1
    path.write_bytes(content)

    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_the_same_ids_in_any_order_make_the_same_name_and_bytes(tmp_path):
    rows = [make_target(index) for index in range(20)]

    one = write_part(LocalStore(tmp_path / "one"), rows)
    two = write_part(LocalStore(tmp_path / "two"), rows[::-1])
    other = write_part(LocalStore(tmp_path / "two"), rows[:-1])

    assert one == two
    assert other.path != one.path


def test_a_rerun_adds_nothing_and_touches_nothing(tmp_path):
    rows = [make_target(index) for index in range(10)]
    write(tmp_path / "c", rows, rows_per_part=4)
    before = files(tmp_path / "c")

    with CacheWriter(tmp_path / "c", **IDENTITY, rows_per_part=3) as writer:
        assert writer.done == {row.target_id for row in rows}
        for row in rows:
            writer.add(row)

    assert files(tmp_path / "c") == before


def test_a_row_added_twice_is_stored_once(tmp_path):
    write(tmp_path, [make_target(0), make_target(1), make_target(0)])

    assert len(list(open_cache(tmp_path).iter_targets())) == 2


def test_a_part_is_committed_as_soon_as_it_is_full(tmp_path):
    writer = CacheWriter(tmp_path, **IDENTITY, rows_per_part=3)
    for index in range(4):
        writer.add(make_target(index))
        writer.add(make_target(index, split="retain"))

    assert {(part.split, part.rows) for part in open_cache(tmp_path).manifest.parts} == {("forget", 3), ("retain", 3)}
    assert len(writer.done) == 6
    writer.flush()
    assert len(writer.done) == 8
    assert Counter(part.split for part in open_cache(tmp_path).manifest.parts) == {"forget": 2, "retain": 2}


def test_rows_of_two_engines_stand_in_parts_of_their_own(tmp_path):
    write(tmp_path, [make_target(0), replace(make_target(1), engine_id="other")])

    assert sorted(part.engine_id for part in open_cache(tmp_path).manifest.parts) == ["other", "synthetic"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_exception_nothing_more_is_committed_unless_the_caller_says_so(tmp_path, error):
    writer = CacheWriter(tmp_path, **IDENTITY, rows_per_part=2)
    with pytest.raises(error), writer:
        for index in range(3):
            writer.add(make_target(index))
        raise error

    assert sum(part.rows for part in open_cache(tmp_path).manifest.parts) == 2
    writer.flush()
    assert sum(part.rows for part in open_cache(tmp_path).manifest.parts) == 3


def test_another_teacher_is_refused_naming_field_and_both_values_before_anything_is_written(tmp_path):
    write(tmp_path, [make_target(0)])
    before = files(tmp_path)

    with pytest.raises(CacheError, match=r"teacher 'vocab_size' is 151936 in the cache, 152064 in this run"):
        write(tmp_path, [make_target(1)], teacher={**TEACHER, "vocab_size": 152_064})
    assert files(tmp_path) == before


def test_directories_and_files_are_private(tmp_path):
    cache = tmp_path / "cache"
    write(cache, [make_target(0), make_target(1, split="retain")])

    for path in [cache, *cache.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_part_left_by_a_killed_writer_is_adopted(tmp_path):
    rows = [make_target(index) for index in range(5)]
    orphan = write_part(LocalStore(tmp_path), rows)
    inode = (tmp_path / orphan.path).stat().st_ino

    write(tmp_path, rows)

    assert open_cache(tmp_path).manifest.parts == (orphan,)
    assert (tmp_path / orphan.path).stat().st_ino == inode


@pytest.mark.parametrize("damage", ["flip", "cut", "other rows"])
def test_a_part_that_only_has_the_right_name_is_not_adopted(tmp_path, damage):
    rows = [make_target(index) for index in range(5)]
    path = tmp_path / write_part(LocalStore(tmp_path), rows).path
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 4
    elif damage == "cut":
        del content[-100:]
    else:
        content = bytearray((tmp_path / write_part(LocalStore(tmp_path), rows[:3]).path).read_bytes())
    path.write_bytes(content)

    with pytest.raises(CacheError, match=path.name):
        write(tmp_path, rows)
    manifest = load_manifest(LocalStore(tmp_path))
    assert manifest is not None
    assert manifest.parts == ()


def test_stale_temporary_files_are_swept_and_young_ones_left(tmp_path):
    write(tmp_path, [make_target(0)])
    stale, young = tmp_path / "data/forget/.tmp-1", tmp_path / "manifest/.tmp-2"
    for path in (stale, young):
        path.write_bytes(b"half a part")
    two_days_ago = time.time() - 2 * 86400
    os.utime(stale, (two_days_ago, two_days_ago))

    write(tmp_path, [make_target(1)])

    assert not stale.exists()
    assert young.exists()
    assert len(list(open_cache(tmp_path).iter_targets())) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "../x"}, "split"),
        ({"split": ""}, "split"),
        ({"token_rank": np.ones(4, np.int32)}, "lengths"),
        ({"topk_ids": np.ones((5, 3), np.int32)}, "shapes"),
        ({"tail_logprob": np.full(5, np.nan, np.float32)}, "NaN"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(tmp_path, changes, words):
    with pytest.raises(CacheError, match=words), CacheWriter(tmp_path, **IDENTITY) as writer:
        writer.add(replace(make_target(0), **changes))


def test_a_disk_that_refuses_is_a_cache_error_and_the_rows_can_be_flushed_again(tmp_path, monkeypatch):
    writer = CacheWriter(tmp_path, **IDENTITY)
    writer.add(make_target(0))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CacheError, match="No space left"):
            writer.flush()
    assert part_files(tmp_path) == set()
    writer.flush()
    assert len(list(open_cache(tmp_path).iter_targets())) == 1


def test_rows_that_another_writer_committed_meanwhile_are_left_out(tmp_path):
    slow = CacheWriter(tmp_path, **IDENTITY)
    for index in range(6):
        slow.add(make_target(index))
    write(tmp_path, [make_target(index) for index in range(3, 9)])

    slow.flush()

    manifest = open_cache(tmp_path).manifest
    assert sorted(part.rows for part in manifest.parts) == [3, 6]
    assert slow.done == {make_target(index).target_id for index in range(9)}


def test_a_part_that_lost_the_race_is_withdrawn(tmp_path, monkeypatch):
    """The other writer commits between this one's look at the manifest and its own commit."""
    from vgid.cache import writer as module

    slow = CacheWriter(tmp_path, **IDENTITY)
    for index in range(6):
        slow.add(make_target(index))
    encode, raced = module.encode_part, []

    def encode_slowly(table, profile):
        if not raced:
            raced.append(True)
            write(tmp_path, [make_target(index) for index in range(3, 9)])
        return encode(table, profile)

    monkeypatch.setattr(module, "encode_part", encode_slowly)
    slow.flush()

    manifest = open_cache(tmp_path).manifest
    assert sorted(part.rows for part in manifest.parts) == [3, 6]
    assert part_files(tmp_path) == {part.path for part in manifest.parts}


@pytest.mark.parametrize(
    ("ranges", "rounds"),
    [
        ([(0, 30), (15, 45)], 10),
        ([(0, 30), (0, 30)], 10),
        ([(0, 30), (10, 40), (20, 50), (0, 50)], 5),
        pytest.param([(0, 30), (10, 40), (20, 50), (0, 50)], 60, marks=pytest.mark.slow),
    ],
    ids=["two share some rows", "two share all rows", "four", "four, 60 times"],
)
def test_processes_on_one_cache_lose_and_double_nothing(tmp_path, ranges, rounds):
    barrier = tmp_path / "barrier"
    barrier.mkdir()
    writers = [
        start(tmp_path / "caches", *range_, 7, barrier, name, len(ranges), rounds) for name, range_ in enumerate(ranges)
    ]
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0] * len(ranges)

    expected = mixed_targets(0, max(last for _, last in ranges))
    for number in range(rounds):
        cache = open_cache(tmp_path / "caches" / str(number))
        assert_same_targets(list(cache.iter_targets()), expected)
        assert set(cache.store.names("data")) == {part.path for part in cache.manifest.parts}
        assert f"manifest {cache.manifest.number}\n" in cache.store.read("README.md").decode()


def test_a_writer_killed_at_any_moment_is_continued_to_the_same_rows(tmp_path):
    expected, rng, interrupted = mixed_targets(0, 60), random.Random(5), 0
    for number in range(10):
        cache = tmp_path / str(number)
        with start(cache, 0, 60, 3) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.4))
            writer.kill()
        manifest = load_manifest(LocalStore(cache))
        interrupted += manifest is None or sum(part.rows for part in manifest.parts) < 60

        write(cache, expected, rows_per_part=10)

        assert_same_targets(list(open_cache(cache).iter_targets()), expected)
    assert interrupted, "every writer finished before it was killed; shorten the wait"
