"""A training's view of a cache: any row at any time, and never one that is not what was committed."""

from __future__ import annotations

import logging
import multiprocessing
import operator
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_targets import IDENTITY, assert_same_targets, make_target, mixed_targets, target_lists

from vgid.cache.manifest import update
from vgid.cache.mapped import MappedTargets, map_targets
from vgid.cache.reader import open_cache
from vgid.cache.schema import NO_CANDIDATE, SCHEMA, Target
from vgid.cache.store import LocalStore
from vgid.cache.writer import CacheWriter
from vgid.errors import CacheError

ROWS = mixed_targets(0, 20)


def write(cache: Path, rows: Sequence[Target], *, rows_per_part: int = 4) -> Path:
    with CacheWriter(cache, **IDENTITY, rows_per_part=rows_per_part) as writer:
        for row in rows:
            writer.add(row)
    return cache


def copies(cache: Path) -> list[Path]:
    return sorted((cache / "scratch").iterdir())


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write(tmp_path / "cache", ROWS)


@pytest.fixture
def mapped(cache: Path) -> MappedTargets:
    return map_targets(open_cache(cache))


# --- what is read ---


@given(rows=target_lists(), rows_per_part=st.integers(1, 4))
def test_every_row_is_what_the_cache_holds(rows, rows_per_part):
    with TemporaryDirectory() as place:
        cache = open_cache(write(Path(place) / "cache", rows, rows_per_part=rows_per_part))
        mapped = map_targets(cache)

        assert len(mapped) == len(rows)
        assert [row.target_id for row in mapped] == [row.target_id for row in cache.iter_targets()]
        assert_same_targets(list(mapped), rows)


@given(data=st.data())
def test_rows_are_read_in_any_order_through_any_view(data, shared_map):
    mapped, rows = shared_map, list(shared_map)
    for _ in range(data.draw(st.integers(0, 3))):
        if data.draw(st.booleans()):
            part = data.draw(st.slices(len(rows)))
            mapped, rows = mapped[part], rows[part]
        elif rows:
            chosen = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=30))
            mapped, rows = mapped.select(chosen), [rows[index] for index in chosen]

    assert len(mapped) == len(rows)
    assert mapped.column("target_id").to_pylist() == [row.target_id for row in rows]
    for index in data.draw(st.permutations(range(-len(rows), len(rows)))):
        found, expected = mapped[index], rows[index]
        assert (found.target_id, found.split, found.noise_seed) == (
            expected.target_id,
            expected.split,
            expected.noise_seed,
        )
        np.testing.assert_array_equal(found.topk_ids, expected.topk_ids)
    with pytest.raises(IndexError):
        mapped[len(rows)]


@pytest.fixture(scope="module")
def shared_map(tmp_path_factory: pytest.TempPathFactory) -> MappedTargets:
    return map_targets(open_cache(write(tmp_path_factory.mktemp("shared") / "cache", ROWS)))


def test_arrays_are_views_that_cannot_be_written_to(mapped):
    row = mapped[3]

    for name in ("token_ids", "token_logprob", "tail_logprob", "topk_ids", "topk_logprobs"):
        array = getattr(row, name)
        assert not array.flags.owndata and not array.flags.writeable, name


def test_a_row_of_several_widths_is_padded(tmp_path):
    row = make_target(0, num_tokens=3, num_topk=4)
    ids, logprobs = row.topk_ids.copy(), row.topk_logprobs.copy()
    ids[1, 1:], logprobs[1, 1:] = NO_CANDIDATE, -np.inf
    row = replace(row, topk_ids=ids, topk_logprobs=logprobs)

    assert_same_targets(list(map_targets(open_cache(write(tmp_path, [row])))), [row])


def test_columns_come_without_their_rows(mapped):
    assert mapped.column("view").to_pylist() == [row.view for row in mapped]
    assert mapped[2:7].column("noise_seed").to_pylist() == [row.noise_seed for row in mapped[2:7]]
    assert mapped.select([]).column("split").to_pylist() == []


def test_a_row_is_an_ordinary_target_to_whoever_changes_it(mapped):
    (row,) = (row for row in ROWS if row.target_id == mapped[0].target_id)
    changed = replace(mapped[0], view="base")

    assert type(changed) is Target
    assert_same_targets([changed], [replace(row, view="base")])
    with pytest.raises(AttributeError):
        mapped[0].nope  # noqa: B018


def test_maps_and_rows_travel_as_names_and_numbers(mapped, cache):
    data = pickle.dumps([mapped, mapped[5:9], *mapped])
    assert len(data) < 100 * len(mapped)

    whole, part, *rows = pickle.loads(data)
    assert_same_targets(list(whole), ROWS)
    assert_same_targets(list(part), list(mapped[5:9]))
    assert_same_targets(rows, ROWS)

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert_same_targets([pool.apply(operator.getitem, (mapped, 3))], [mapped[3]])
    shutil.rmtree(cache / "scratch")
    with pytest.raises(CacheError, match="rerun"):
        pickle.loads(data)


def test_a_cache_without_rows_makes_an_empty_map(tmp_path):
    CacheWriter(tmp_path, **IDENTITY)

    mapped = map_targets(open_cache(tmp_path))

    assert (len(mapped), list(mapped), mapped.column("target_id").to_pylist()) == (0, [], [])


# --- when it is decoded ---


def test_a_sound_copy_is_used_again(cache):
    told: list[tuple[int, int]] = []
    for _ in range(2):
        map_targets(open_cache(cache), progress=lambda done, total: told.append((done, total)))

    assert told[-1] == (20, 20)
    assert len(told) == len(open_cache(cache).manifest.parts)


def test_a_commit_makes_a_new_copy_and_removes_the_old_one(cache, mapped):
    write(cache, [make_target(50)])
    after = map_targets(open_cache(cache))

    assert copies(cache) == [after.path] != [mapped.path]
    assert_same_targets(list(after), [*ROWS, make_target(50)])
    assert_same_targets(list(mapped), ROWS)  # who has it mapped keeps it


def test_rows_that_left_the_cache_are_in_no_copy(cache, mapped):
    gone = open_cache(cache).manifest.parts[0]
    ids = [row.target_id for row in mapped if row.split == gone.split][: gone.rows]
    fewer = replace(open_cache(cache).manifest, parts=open_cache(cache).manifest.parts[1:])
    update(LocalStore(cache), lambda newest: fewer)

    after = map_targets(open_cache(cache))

    assert len(after) == 20 - gone.rows
    (copy,) = copies(cache)
    assert not any(name.encode() in copy.read_bytes() for name in ids)


def test_builders_at_the_same_time_do_not_disturb_each_other(cache):
    script = (
        "import sys; from pathlib import Path; from vgid.cache.mapped import map_targets; "
        "from vgid.cache.reader import open_cache; cache = open_cache(Path(sys.argv[1])); print('ready', flush=True); "
        "sys.stdin.read(); print(*sorted(row.target_id for row in map_targets(cache)))"
    )
    command = [sys.executable, "-c", script, str(cache)]
    builders = [
        subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for builder in builders:
        assert builder.stdout is not None and builder.stdout.readline() == "ready\n"
    for builder in builders:
        assert builder.stdin is not None
        builder.stdin.close()
    for builder in builders:
        assert builder.stdout is not None and builder.stderr is not None
        assert builder.stdout.read().split() == sorted(row.target_id for row in ROWS)
        assert builder.stderr.read() == ""
        assert builder.wait() == 0
        builder.stdout.close()
        builder.stderr.close()
    assert len(copies(cache)) == 1


def test_what_a_dead_builder_left_is_removed_and_a_living_ones_file_is_not(cache):
    (cache / "scratch").mkdir()
    dead, living = cache / "scratch" / ".tmp-dead", cache / "scratch" / ".tmp-living"
    for path in (dead, living):
        path.write_bytes(b"half a copy")
    os.utime(dead, (0, 0))

    mapped = map_targets(open_cache(cache))

    assert set(copies(cache)) == {living, mapped.path}


# --- what is not trusted ---


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])  # caplog is cleared
@given(bit=st.integers(0, 2**40))
def test_a_bit_flipped_in_the_copy_is_found_and_the_copy_made_again(bit, damaged, caplog):
    cache, path = damaged
    flip(path, bit)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        mapped = map_targets(open_cache(cache))

    (line,) = caplog.messages
    assert str(path) in line and "decoding the cache again" in line
    assert_same_targets(list(mapped), ROWS[:4])
    assert copies(cache) == [path]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    cache = write(tmp_path_factory.mktemp("damaged") / "cache", ROWS[:4])
    return cache, map_targets(open_cache(cache)).path


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_a_copy_cut_short_is_made_again(cache, mapped, length):
    os.truncate(mapped.path, length)  # as a power cut may

    assert_same_targets(list(map_targets(open_cache(cache))), ROWS)


def test_a_copy_with_other_columns_is_made_again(cache, mapped):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA.remove(SCHEMA.get_field_index("entropy"))):
        pass
    data = sink.getvalue().to_pybytes()
    stem = mapped.path.name.partition("-")[0]
    mapped.path.unlink()
    (mapped.path.parent / f"{stem}-{sha256(data).hexdigest()[:24]}.arrow").write_bytes(data)

    assert_same_targets(list(map_targets(open_cache(cache))), ROWS)


@given(bit=st.integers(0, 2**40), which=st.integers(0, 100))
def test_a_bit_flipped_in_a_part_is_refused_and_named(bit, which, cold):
    parts = open_cache(cold).manifest.parts
    path = cold / parts[which % len(parts)].path
    flip(path, bit)
    try:
        with pytest.raises(CacheError, match=path.name):
            map_targets(open_cache(cold))
        assert copies(cold) == []
    finally:
        flip(path, bit)


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cold") / "cache", ROWS[:8], rows_per_part=3)


# --- the disk ---


def test_only_the_owner_can_read_the_copy(cache, tmp_path):
    old = os.umask(0)
    try:
        for scratch in (None, tmp_path / "elsewhere"):
            path = map_targets(open_cache(cache), scratch=scratch).path
            assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    finally:
        os.umask(old)


def test_a_full_disk_is_one_line_that_names_the_way_out(cache):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, usual[1]))
    try:
        with pytest.raises(CacheError, match=r"scratch \(File too large\).* --scratch DIR") as error:
            map_targets(open_cache(cache))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)

    assert "\n" not in str(error.value)
    assert copies(cache) == []
    assert_same_targets(list(map_targets(open_cache(cache))), ROWS)


def test_a_place_that_cannot_be_written_is_one_line_that_names_the_way_out(cache, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(CacheError, match=r"file/.* \(Not a directory\).* --scratch DIR"):
        map_targets(open_cache(cache), scratch=tmp_path / "file")
