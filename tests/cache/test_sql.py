from __future__ import annotations

import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import pytest
from synthetic_targets import IDENTITY, make_target

from vgid.cache.sql import open_query, run_sql
from vgid.cache.writer import CacheWriter
from vgid.errors import CacheError, ConfigError

FOR_AGES = "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b"
MANY_ROWS = "SELECT a.range + b.range AS n FROM range(1000000) a, range(1000000) b"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "cache"
    with CacheWriter(path, **IDENTITY) as writer:
        for index in range(3):
            writer.add(make_target(index))
    return path


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT nope FROM targets", "nope"),
        ("SELECT split\nFROM target", "Did you mean"),
        ("", "no statement"),
        ("-- nothing", "no statement"),
        ("SELECT * FROM read_text('/etc/passwd')", "committed files of this cache"),
    ],
)
def test_wrong_sql_is_a_usage_error_of_one_line(cache, query, words):
    with pytest.raises(ConfigError, match=words) as caught:
        run_sql(cache, query)
    assert "\n" not in str(caught.value)


def test_no_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(CacheError, match="vgid teacher generate"):
        run_sql(tmp_path, "SELECT 1")


def test_of_several_statements_the_last_one_answers(cache):
    table = run_sql(cache, "CREATE TABLE t AS SELECT 1 AS a; INSERT INTO t VALUES (2); SELECT sum(a) AS s FROM t")

    assert table.to_pylist() == [{"s": 3}]


def test_a_query_is_stopped_when_its_time_is_over(cache):
    with pytest.raises(ConfigError, match=r"after 0\.2 s.*--timeout"):
        run_sql(cache, FOR_AGES, timeout_s=0.2)


def test_the_time_limit_holds_while_rows_come(cache):
    with pytest.raises(ConfigError, match="--timeout"), open_query(cache, MANY_ROWS, timeout_s=0.5) as answer:
        for _ in answer.batches:
            pass


def test_rows_come_as_they_are_made(cache):
    with open_query(cache, MANY_ROWS) as answer:
        assert answer.schema.names == ["n"]
        assert sum(batch.num_rows for batch in islice(answer.batches, 3)) == 3 * 2048


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM (SELECT range FROM range(100000000) GROUP BY ALL)",
        "SELECT range FROM range(100000000) ORDER BY hash(range)",
    ],
)
def test_a_query_that_needs_more_memory_than_allowed_says_so(cache, query):
    with pytest.raises(ConfigError, match="--memory"):
        run_sql(cache, query, memory="50MB")


def test_no_thread_is_left_behind(cache):
    before = threading.active_count()
    with pytest.raises(ConfigError):
        run_sql(cache, FOR_AGES, timeout_s=0.1)
    run_sql(cache, "SELECT 1")

    assert threading.active_count() == before


def test_an_interrupt_in_the_library_stops_the_query(cache):
    """Ctrl-C in a notebook or a script, not only in the command."""
    code = f"""if True:
        import os, signal, threading
        from vgid.cache.sql import run_sql
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            run_sql({str(cache)!r}, {FOR_AGES!r})
        except KeyboardInterrupt:
            print("stopped")"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert output.stdout == "stopped\n"
