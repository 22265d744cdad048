from __future__ import annotations

import os
import time

import pytest

from vgid.cache.files import link_new, make_private_directory, sweep_stale, temporary_file


def test_of_two_files_linked_to_one_name_the_first_wins_and_stays(tmp_path):
    final = tmp_path / "part"
    with temporary_file(tmp_path, lambda file: file.write(b"first")) as first:
        assert link_new(first, final)
    with temporary_file(tmp_path, lambda file: file.write(b"second")) as second:
        assert not link_new(second, final)

    assert final.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_a_write_that_fails_leaves_no_file(tmp_path):
    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), temporary_file(tmp_path, fail):
        pass
    assert list(tmp_path.iterdir()) == []


def test_directories_and_files_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        directory = make_private_directory(tmp_path / "cache")
        with temporary_file(directory, lambda file: file.write(b"x")) as temporary:
            assert temporary.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_only_stale_temporary_files_are_swept(tmp_path):
    old, young, other = tmp_path / ".tmp-old", tmp_path / ".tmp-young", tmp_path / "part-old.parquet"
    for path in (old, young, other):
        path.touch()
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (old, other):
        os.utime(path, (two_days_ago, two_days_ago))

    sweep_stale(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-young", "part-old.parquet"]
