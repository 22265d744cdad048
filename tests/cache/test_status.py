from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sound_targets import FIXED, TEACHER, sound_target, token_table, write_sound
from tampering import change_manifest, parts_of

from vgid.cache.manifest import Manifest, update
from vgid.cache.reader import open_cache
from vgid.cache.status import Count, Files, Status, cache_status
from vgid.cache.store import LocalStore
from vgid.cache.tombstones import Tombstones
from vgid.cache.writer import CacheWriter, write_part

FORGET = [sound_target(index, num_tokens=3) for index in range(5)]
RETAIN = [sound_target(index, split="retain", num_tokens=2) for index in range(4)]


def status(cache: Path, **options: datetime) -> Status:
    return cache_status(open_cache(cache), **options)


@pytest.fixture
def cache(tmp_path) -> Path:
    write_sound(tmp_path / "cache", FORGET + RETAIN, rows_per_part=2)
    return tmp_path / "cache"


def test_rows_and_tokens_are_counted_by_kind_over_all_parts(cache):
    found = status(cache)

    forget = {"split": "forget", "view": "noise+icu", "modality": "image", "response_kind": "generated"}
    retain = {"split": "retain", "view": "base", "modality": "image", "response_kind": "reference"}
    assert found.counts == (Count(**forget, rows=5, tokens=15), Count(**retain, rows=4, tokens=8))
    assert (found.parts, found.rows, found.tokens) == (5, 9, 23)
    assert found.bytes == sum((cache / part["path"]).stat().st_size for part in parts_of(cache))
    assert found.bytes_per_token == pytest.approx(found.bytes / 23)


def test_one_part_may_hold_several_kinds(tmp_path):
    text = {"modality": "text", "image_sha256": None, "pixel_sha256": None}
    plain = replace(FORGET[1], view="icu", perturbation=None, strength=None, noise_seed=None, **text)
    write_sound(tmp_path, [FORGET[0], plain])

    found = status(tmp_path)

    assert found.parts == 1
    assert [(count.view, count.modality, count.rows) for count in found.counts] == [
        ("icu", "text", 1),
        ("noise+icu", "image", 1),
    ]


def test_identity_settings_and_engines_are_those_of_the_manifest(cache):
    found = status(cache)

    assert (found.teacher, found.settings, found.engines) == (TEACHER, FIXED, ("synthetic",))
    assert (found.vocabulary, found.tombstones, found.format_version) == (len(token_table()), 0, 2)
    assert found.manifest == open_cache(cache).manifest.number


def test_a_part_whose_kinds_nobody_wrote_down_counts_by_split_alone(cache):
    change_manifest(cache, lambda body: body["parts"][0].update(kinds=None))

    unknown, known, _ = status(cache).counts

    assert unknown == Count(split="forget", rows=2, tokens=6) and known.rows == 3


@pytest.mark.parametrize(("planned", "missing"), [(20, 11), (9, 0), (3, 0), (None, None)])
def test_what_the_latest_plan_lacks_at_least(cache, planned, missing):
    change_manifest(cache, lambda body: body.update(plan={} if planned is None else {"rows": planned}))

    assert status(cache).missing_rows == missing


@pytest.mark.parametrize(
    ("expires", "expired"),
    [(None, False), ("2027-01-31T12:00:00+00:00", False), ("2027-01-31T11:59:59+00:00", True)],
)
def test_a_cache_has_expired_once_its_time_has_come(tmp_path, expires, expired):
    write_sound(tmp_path, FORGET, expires=expires)

    found = status(tmp_path, now=datetime(2027, 1, 31, 11, 59, 59, 500_000, tzinfo=UTC))

    assert (found.expires, found.expired) == (expires, expired)


def test_tombstones_are_counted(cache):
    def bury(newest: Manifest | None) -> Manifest:
        assert newest is not None
        return replace(newest, tombstones=Tombstones(key_id="0" * 16, entries=("a" * 64, "b" * 64)))

    update(LocalStore(cache), bury)

    assert status(cache).tombstones == 2


def test_files_that_no_manifest_names_are_told_apart(cache):
    store = LocalStore(cache)
    stray = write_part(store, [sound_target(77)])
    (cache / "vocabulary" / f"{'0' * 24}.parquet").write_bytes(b"old")
    (cache / "data" / "forget" / ".tmp-0").write_bytes(b"half")
    (cache / "scratch").mkdir()
    (cache / "scratch" / "decoded.arrow").write_bytes(b"decoded")
    (cache / "notes.txt").write_bytes(b"a stranger's")

    found = status(cache)

    assert found.unnamed == Files(files=2, bytes=stray.bytes + 3)
    assert found.temporary == Files(files=1, bytes=4)
    assert found.scratch == Files(files=1, bytes=7)
    assert found.missing_files == () and found.rows == 9


def test_a_missing_part_is_told_without_opening_one(cache):
    first, second = (part["path"] for part in parts_of(cache)[:2])
    (cache / first).unlink()
    (cache / second).write_bytes(b"no Parquet at all")

    assert status(cache).missing_files == (first,)


def test_an_empty_cache_has_a_status_too(tmp_path):
    CacheWriter(tmp_path, teacher=TEACHER, settings=FIXED, plan={"rows": 7})

    found = status(tmp_path)

    assert (found.parts, found.rows, found.bytes_per_token, found.counts, found.missing_rows) == (0, 0, None, (), 7)
