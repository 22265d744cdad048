"""Any single bit flipped in a file that the manifest names, or in the newest manifest: whoever reads it refuses.

Each way into a cache is asked the same: `verify`, the reader that training uses, and SQL. None may answer with what a
damaged file says, and each has to name the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sound_targets import sound_target, write_sound
from tampering import manifest_path, parts_of

from vgid.cache.reader import open_cache
from vgid.cache.sql import run_sql
from vgid.cache.verify import verify_cache
from vgid.cache.vocabulary import read_vocabulary
from vgid.errors import CacheError


def verify(cache: Path) -> None:
    report = verify_cache(open_cache(cache))
    if report.num_errors:
        raise CacheError("; ".join(f"{finding.file}: {finding.message}" for finding in report.findings))


def read_rows(cache: Path) -> None:
    list(open_cache(cache).iter_targets())


def read_one_column(cache: Path) -> None:
    open_cache(cache).rows(["target_id"])


def count_rows(cache: Path) -> None:
    run_sql(cache, "SELECT count(*) FROM targets")


def sum_up(cache: Path) -> None:
    run_sql(cache, "SELECT sum(token_logprob), sum(len(topk_ids)) FROM tokens")


ROWS_READERS = [verify, read_rows, read_one_column, count_rows, sum_up]
TEXT_READERS = [verify, lambda cache: read_vocabulary(open_cache(cache))]

PLACES = 1 << 20
# Hypothesis prefers small numbers, which would leave the ends of files alone: an odd factor spreads them.
places = st.integers(0, PLACES - 1).map(lambda number: number * 648_055 % PLACES)
anywhere = given(place=places, bit=st.integers(0, 7))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("flips") / "cache"
    write_sound(path, [sound_target(index, split=split) for split in ("forget", "retain") for index in range(3)])
    for read in (*ROWS_READERS, *TEXT_READERS):
        read(path)
    return path


@contextmanager
def flipped(path: Path, place: int, bit: int) -> Iterator[None]:
    """The file with one bit changed, `place` of `PLACES` from its beginning; as it was afterwards."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place * len(whole) // PLACES] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(whole)


def assert_refused(cache: Path, path: Path, readers: Sequence[Callable[[Path], object]]) -> None:
    for read in readers:
        with pytest.raises(CacheError, match=path.name):
            read(cache)


@settings(max_examples=200)
@anywhere
@example(place=0, bit=0)
@example(place=PLACES - 1, bit=7)
def test_of_a_part(cache, place, bit):
    path = cache / parts_of(cache)[place % 2]["path"]
    with flipped(path, place, bit):
        assert_refused(cache, path, ROWS_READERS)


@settings(max_examples=200)
@anywhere
@example(place=0, bit=0)
@example(place=PLACES - 1, bit=7)
def test_of_the_newest_manifest(cache, place, bit):
    with flipped(manifest_path(cache), place, bit):
        assert_refused(cache, manifest_path(cache), [*ROWS_READERS, *TEXT_READERS])


@settings(max_examples=200)
@anywhere
@example(place=0, bit=0)
@example(place=PLACES - 1, bit=7)
def test_of_the_token_table(cache, place, bit):
    (path,) = (cache / "vocabulary").iterdir()
    with flipped(path, place, bit):
        assert_refused(cache, path, TEXT_READERS)
