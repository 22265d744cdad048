from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vgid.cache.store import LocalStore, open_store


def test_of_two_files_created_under_one_name_the_first_wins_and_stays(store):
    assert store.create("data/part", b"first")
    assert not store.create("data/part", b"second")

    assert store.read("data/part") == b"first"
    assert store.names() == ["data/part"]


def test_of_racing_creators_exactly_one_wins(store):
    racers = {data: open_store(store.location) for data in (b"a", b"bb", b"ccc")}

    with ThreadPoolExecutor(len(racers)) as pool:
        for number in range(10):
            name = f"manifest/{number}"
            results = pool.map(lambda data, name=name: racers[data].create(name, data), racers)
            assert [data for data, won in zip(racers, results, strict=True) if won] == [store.read(name)]


def test_a_replaced_file_has_the_new_content(store):
    store.replace("README.md", b"old")
    store.replace("README.md", b"new")

    assert (store.read("README.md"), store.size("README.md")) == (b"new", 3)
    assert store.names() == ["README.md"]


def test_a_file_that_is_not_there_is_told_from_one_that_cannot_be_read(store):
    for name in ("data", "data/part"):
        with pytest.raises(FileNotFoundError):
            store.read(name)


def test_a_deleted_file_is_gone_and_deleting_it_again_is_fine(store):
    store.create("data/part", b"x")

    store.delete("data/part")
    store.delete("data/part")

    assert store.names() == []
    assert store.create("data/part", b"y")


def test_the_names_are_those_below_a_folder_sorted_whoever_made_them(store):
    assert store.names() == store.names("data") == []
    names = ["data/b/2", "data/a/10", "data/a/9", "data-of-others/x", "README.md", "data.parquet"]
    other = open_store(store.location)
    for name in names:
        other.create(name, name.encode())

    assert store.names() == sorted(names)
    assert store.names("data") == ["data/a/10", "data/a/9", "data/b/2"]
    assert store.names("dat") == store.names("README.md") == []


def test_a_sweep_takes_nothing_that_is_whole(store):
    store.create("data/part", b"x")
    store.replace("README.md", b"y")

    store.sweep(older_than_s=0)

    assert store.names() == ["README.md", "data/part"]


def test_a_file_is_described_by_its_whole_path_or_url(store):
    assert store.describe("data/part") == f"{store.location}/data/part"


def test_a_file_url_is_a_path(tmp_path):
    open_store(f"file://{tmp_path}").create("part", b"x")

    assert (tmp_path / "part").read_bytes() == b"x"


def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="No space"):
        LocalStore(tmp_path).create("part", b"half")
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_that_vanishes_is_written_again(tmp_path, monkeypatch):
    link, swept = os.link, []

    def sweep_first(source, target):
        if not swept:
            swept.append(source)
            os.unlink(source)
        link(source, target)

    monkeypatch.setattr(os, "link", sweep_first)

    assert LocalStore(tmp_path).create("part", b"content")
    assert (tmp_path / "part").read_bytes() == b"content"


def test_what_another_made_is_made_to_stay_since_it_may_have_died_before_it_did_so(tmp_path, monkeypatch):
    sync, synced = os.fsync, set[str]()

    def noted(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    LocalStore(tmp_path / "cache").create("data/part", b"first")
    monkeypatch.setattr(os, "fsync", noted)

    assert not LocalStore(tmp_path / "cache").create("data/part", b"second")
    assert {str(tmp_path / folder) for folder in ("", "cache", "cache/data")} <= synced

    synced.clear()
    LocalStore(tmp_path / "cache").sweep(older_than_s=60)
    assert str(tmp_path / "cache/data") in synced


def test_a_disk_that_gives_back_other_bytes_is_an_error(tmp_path, monkeypatch):
    sync, store = os.fsync, LocalStore(tmp_path)
    store.create("other", b"makes the folder")

    def lose_the_end(descriptor):
        os.ftruncate(descriptor, 3)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", lose_the_end)

    with pytest.raises(OSError, match="other bytes"):
        store.create("part", b"content")
    assert store.names() == ["other"]


def test_directories_and_files_are_private_whatever_the_umask(tmp_path):
    store, before = LocalStore(tmp_path / "made" / "cache"), os.umask(0)
    try:
        store.create("data/forget/part", b"x")
        store.replace("README.md", b"x")
    finally:
        os.umask(before)

    for path in [store.root, *store.root.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o777, "a folder above the cache is not ours to close"


def test_only_stale_temporary_files_are_swept(tmp_path):
    (tmp_path / "data").mkdir()
    old, young, other = tmp_path / "data/.tmp-old", tmp_path / ".tmp-young", tmp_path / "part-old.parquet"
    for path in (old, young, other):
        path.touch()
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (old, other):
        os.utime(path, (two_days_ago, two_days_ago))

    LocalStore(tmp_path).sweep(older_than_s=24 * 3600)

    assert sorted(path.name for path in tmp_path.rglob("*")) == [".tmp-young", "data", "part-old.parquet"]


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    """As root every folder can be read, so the refusal comes from the call itself."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)

    with pytest.raises(PermissionError):
        LocalStore(tmp_path).names("manifest")


def test_a_file_in_the_place_of_the_cache_is_an_error(tmp_path):
    (tmp_path / "cache").write_text("")

    with pytest.raises(OSError):
        LocalStore(tmp_path / "cache").create("data/part", b"x")
    assert (tmp_path / "cache").read_text() == ""
