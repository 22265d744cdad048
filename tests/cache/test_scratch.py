"""Decoded copies are found again, wherever they were put."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import pytest
from synthetic_targets import IDENTITY, make_target

from vgid.cache.mapped import map_targets
from vgid.cache.reader import open_cache
from vgid.cache.scratch import ScratchPlace, remove_scratch, scratch_files, scratch_folder, scratch_places
from vgid.cache.store import LocalStore
from vgid.cache.writer import CacheWriter


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    with CacheWriter(tmp_path / "cache", **IDENTITY) as writer:
        writer.add(make_target(0))
    return tmp_path / "cache"


class Bucket(LocalStore):
    """A store that is reached by URL."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.location = "s3://bucket/cache"


class ReadOnly(LocalStore):
    def create(self, name: str, data: bytes) -> bool:
        raise OSError(30, "Read-only file system", name)


def test_a_copy_lies_in_its_cache_and_needs_no_note(cache):
    path = map_targets(open_cache(cache)).path

    assert path.parent == cache / "scratch"
    assert scratch_files(cache) == [path]
    assert LocalStore(cache).names("scratch") == [f"scratch/{path.name}"]


def test_a_cache_with_a_url_has_its_copy_in_the_users_cache_directory(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    path = map_targets(open_cache(Bucket(cache))).path

    assert path.parent.parent == tmp_path / "user" / "vgid" / "scratch"
    assert scratch_files(Bucket(cache)) == [path]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another-user"))
    assert scratch_files(Bucket(cache)) == [path]  # the cache has noted it
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert scratch_folder(Bucket(cache)).is_relative_to(Path.home() / ".cache" / "vgid")


def test_a_copy_put_elsewhere_is_noted_once_and_found_with_the_usual_one(cache, tmp_path):
    usual = map_targets(open_cache(cache)).path
    other = map_targets(open_cache(cache), scratch=tmp_path / "fast").path
    other.unlink()
    assert map_targets(open_cache(cache), scratch=tmp_path / "fast").path == other

    assert other.parent.parent == tmp_path / "fast"
    assert scratch_files(cache) == sorted([usual, other])
    assert [(place.is_here, place.note is None) for place in scratch_places(cache)] == [(True, True), (True, False)]


def test_two_caches_share_a_place_without_removing_each_others_copy(cache, tmp_path):
    with CacheWriter(tmp_path / "second", **IDENTITY) as writer:
        writer.add(make_target(1))
    paths = [map_targets(open_cache(path), scratch=tmp_path / "fast").path for path in (cache, tmp_path / "second")]

    assert all(path.exists() for path in paths)
    assert scratch_files(cache) == paths[:1]


def test_a_copy_on_another_machine_is_told_of(cache):
    LocalStore(cache).create("scratch/0123.place", b"node7\n/local/fast/0123")

    assert scratch_places(cache) == [
        ScratchPlace(host=platform.node(), folder=cache / "scratch", note=None),
        ScratchPlace(host="node7", folder=Path("/local/fast/0123"), note="scratch/0123.place"),
    ]
    assert [place.is_here for place in scratch_places(cache)] == [True, False]
    assert scratch_files(cache) == []


def test_all_copies_in_sight_are_removed_and_those_of_other_machines_stay_noted(cache, tmp_path):
    LocalStore(cache).create("scratch/0123.place", f"node7\n{tmp_path / 'shared'}".encode())
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a-b.arrow").touch()
    paths = [map_targets(open_cache(cache), scratch=place).path for place in (None, tmp_path / "fast")]

    assert remove_scratch(cache) == 3
    assert not any(path.exists() for path in paths)
    assert scratch_files(cache) == []
    assert LocalStore(cache).names("scratch") == ["scratch/0123.place"]


def test_unfinished_copies_count(cache):
    (cache / "scratch").mkdir()
    (cache / "scratch" / ".tmp-killed").touch()

    assert scratch_files(cache) == [cache / "scratch" / ".tmp-killed"]


def test_a_cache_that_cannot_note_where_its_copy_is_says_so(cache, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        path = map_targets(open_cache(ReadOnly(cache)), scratch=tmp_path / "fast").path

    assert path.exists()
    (line,) = caplog.messages
    assert str(path.parent) in line and "Read-only file system" in line and "delete that yourself" in line
