from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from synthetic_targets import IDENTITY, make_target

from vgid.cache.reader import open_cache
from vgid.cache.schema import SCHEMA
from vgid.cache.sql import connect, run_sql
from vgid.cache.writer import CacheWriter
from vgid.errors import CacheError, ConfigError

ROWS = [make_target(index, num_tokens=2 + index) for index in range(3)] + [make_target(9, split="retain")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "cache"
    write(path, ROWS)
    return path


def write(path: Path, rows) -> None:
    with CacheWriter(path, **IDENTITY) as writer:
        for row in rows:
            writer.add(row)


def one(cache: Path, query: str):
    return next(iter(run_sql(cache, query).to_pylist()[0].values()))


def test_targets_has_all_columns_and_rows(cache):
    table = run_sql(cache, "SELECT * FROM targets")

    assert table.column_names == SCHEMA.names
    assert sorted(table["target_id"].to_pylist()) == sorted(row.target_id for row in ROWS)


def test_tokens_has_one_row_a_position_counted_from_zero(cache):
    row = ROWS[2]
    found = run_sql(cache, f"SELECT * FROM tokens WHERE target_id = '{row.target_id}' ORDER BY pos").to_pydict()

    assert found["pos"] == list(range(len(row.token_ids)))
    for name in ("token_id", "token_logprob", "token_rank", "tail_logprob", "topk_ids", "entropy"):
        expected = getattr(row, {"token_id": "token_ids"}.get(name, name))
        assert found[name] == expected.tolist(), name
    np.testing.assert_allclose(found["tail_mass"], np.exp(row.tail_logprob), rtol=1e-6)
    assert found["logsumexp"] == found["is_fact"] == [None] * len(row.token_ids)
    assert {found[name][0] for name in ("split", "task", "modality", "view")} == {
        "forget",
        "facts",
        "image",
        "noise+icu",
    }


def test_candidates_has_one_row_a_candidate_ranked_from_one(cache):
    row = ROWS[1]
    query = f"SELECT * FROM candidates WHERE target_id = '{row.target_id}' ORDER BY pos, rank"
    found = run_sql(cache, query).to_pydict()

    num_tokens, num_topk = row.topk_ids.shape
    assert found["pos"] == np.repeat(np.arange(num_tokens), num_topk).tolist()
    assert found["rank"] == np.tile(np.arange(1, num_topk + 1), num_tokens).tolist()
    assert found["candidate_id"] == row.topk_ids.ravel().tolist()
    assert found["logprob"] == row.topk_logprobs.ravel().tolist()
    np.testing.assert_allclose(found["probability"], np.exp(row.topk_logprobs.ravel()), rtol=1e-6)
    assert found["token_id"] == np.repeat(row.token_ids, num_topk).tolist()


@pytest.mark.parametrize("column", ["logsumexp", "is_fact", "entropy", "pos", "topk_ids", "split"])
def test_a_column_read_alone_has_as_many_rows_as_with_the_others(cache, column):
    """An absent list must not make rows vanish when DuckDB drops the columns beside it."""
    positions = sum(len(row.token_ids) for row in ROWS)

    assert run_sql(cache, f"SELECT {column} FROM tokens").num_rows == positions
    assert one(cache, "SELECT count(*) FROM tokens") == positions
    assert run_sql(cache, "SELECT split FROM candidates").num_rows == 4 * positions


def test_probabilities_and_tail_add_up_to_one(cache):
    query = """SELECT max(abs(1 - total)) FROM (
        SELECT sum(probability) + any_value(tail_mass) AS total
        FROM candidates JOIN tokens USING (target_id, pos) GROUP BY target_id, pos)"""

    assert one(cache, query) < 1e-3


def test_a_tail_of_nothing_has_no_mass(tmp_path):
    write(tmp_path, [replace(make_target(0), tail_logprob=np.full(5, -np.inf, np.float32))])

    assert one(tmp_path, "SELECT max(tail_mass) FROM tokens") == 0


def test_a_cache_without_parts_has_the_same_views_with_no_rows(tmp_path, cache):
    write(tmp_path, [])
    for view in ("targets", "tokens", "candidates"):
        query = f"SELECT column_name, column_type FROM (DESCRIBE {view})"
        assert run_sql(tmp_path, query) == run_sql(cache, query), view
        assert one(tmp_path, f"SELECT count(*) FROM {view}") == 0


def test_only_committed_parts_are_seen(tmp_path):
    from vgid.cache.store import LocalStore
    from vgid.cache.writer import write_part

    write(tmp_path, [make_target(0)])
    orphan = write_part(LocalStore(tmp_path), [make_target(1)])

    assert one(tmp_path, "SELECT count(*) FROM targets") == 1
    assert run_sql(tmp_path, "SELECT file FROM glob('vgid://**')").num_rows == 1
    with pytest.raises(ConfigError):
        run_sql(tmp_path, f"SELECT * FROM 'vgid://{orphan.path}'")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT nope FROM targets", "nope"),
        ("", "no statement"),
        ("-- nothing", "no statement"),
    ],
)
def test_wrong_sql_is_a_usage_error_of_one_line(cache, query, words):
    with pytest.raises(ConfigError, match=words) as caught:
        run_sql(cache, query)
    assert "\n" not in str(caught.value)


def test_no_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(CacheError, match="vgid teacher generate"):
        run_sql(tmp_path, "SELECT 1")


def test_a_missing_part_is_refused_naming_it(tmp_path):
    write(tmp_path, ROWS)
    path = tmp_path / open_cache(tmp_path).manifest.parts[1].path
    path.unlink()

    with pytest.raises(CacheError, match=path.name):
        run_sql(tmp_path, "SELECT sum(token_logprob) FROM tokens")


def test_a_part_damaged_after_the_connection_was_made_is_refused(tmp_path):
    write(tmp_path, ROWS)
    with closing(connect(tmp_path)) as connection:
        path = tmp_path / open_cache(tmp_path).manifest.parts[1].path
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)

        with pytest.raises(duckdb.Error, match=path.name):
            connection.execute("SELECT sum(token_logprob) FROM tokens").fetchall()


ATTACKS = [
    "COPY (SELECT 1) TO '{outside}/x.csv'",
    "COPY (SELECT 1) TO '{cache}/x.csv'",
    "COPY (SELECT 1) TO 'vgid://x.csv'",
    "COPY targets TO 'vgid://{part}' (FORMAT parquet)",
    "COPY targets TO 'vgid://{part}' (FORMAT parquet, USE_TMP_FILE false)",
    "COPY (SELECT 1) TO 'vgid://data/new' (FORMAT parquet, PER_THREAD_OUTPUT)",
    "COPY targets TO 'vgid://data/new' (FORMAT parquet, PARTITION_BY split)",
    "WITH x AS (COPY (SELECT 1) TO '{outside}/x.csv') SELECT 1",
    "WITH x AS (COPY (SELECT 1) TO 'vgid://x.csv') SELECT 1",
    "WITH x AS (COPY (SELECT 1) TO '{outside}/x.csv') SELECT * FROM x",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{outside}/x.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO 'vgid://x.csv'",
    "ATTACH '{outside}/x.db' AS x",
    "ATTACH 'vgid://x.db' AS x",
    "EXPORT DATABASE '{outside}/x'",
    "EXPORT DATABASE 'vgid://x'",
    "IMPORT DATABASE '{outside}'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_blob('vgid:///etc/passwd')",
    "SELECT * FROM '{outside}/secret.csv'",
    "SELECT * FROM read_text('{outside}/secret.csv')",
    "SELECT * FROM read_text('vgid://../secret.csv')",
    "SELECT * FROM read_text('vgid://{part}/../../../../secret.csv')",
    "SELECT * FROM read_text('file://{outside}/secret.csv')",
    "SELECT * FROM read_text('{cache}/README.md')",
    "SELECT * FROM read_text('vgid://README.md')",
    "SELECT * FROM read_text('vgid://manifest/000001.json')",
    "SELECT * FROM read_parquet('{cache}/{part}')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_csv('https://example.org/x.csv')",
    "INSTALL httpfs",
    "FORCE INSTALL httpfs FROM '{outside}'",
    "LOAD httpfs",
    "LOAD '{outside}/x.duckdb_extension'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SET temp_directory = '{outside}'",
    "SET home_directory = '{outside}'",
    "SET disabled_filesystems = ''",
    "RESET disabled_filesystems",
    "PRAGMA enable_profiling",
    "PRAGMA profiling_output = '{outside}/profile'",
    "CALL enable_logging(storage = 'file', storage_path = '{outside}')",
    "CREATE PERSISTENT SECRET s (TYPE s3)",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_sandbox_refuses(cache, attack):
    outside = cache.parent
    (outside / "secret.csv").write_text("secret\n1\n")
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    query = attack.format(outside=outside, cache=cache, part=open_cache(cache).manifest.parts[0].path)

    with pytest.raises(ConfigError):
        run_sql(cache, query)
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


def test_the_connection_is_locked_down_by_more_than_one_bolt(cache):
    wanted = {
        "enable_external_access": "false",
        "lock_configuration": "true",
        "temp_directory": "",
        "python_enable_replacements": "false",
    }
    table = run_sql(cache, "SELECT name, value FROM duckdb_settings()").to_pylist()

    assert wanted.items() <= {row["name"]: row["value"] for row in table}.items()


def test_a_python_variable_is_no_table(cache):
    rows = open_cache(cache).rows(["target_id"])

    with closing(connect(cache)) as connection, pytest.raises(duckdb.Error, match="does not exist"):
        connection.execute("SELECT * FROM rows").fetchall()
    assert rows.num_rows == 4


def test_a_part_can_be_attached_but_not_changed(cache):
    path = cache / open_cache(cache).manifest.parts[0].path
    before = path.read_bytes()
    attach = f"ATTACH 'vgid://{path.relative_to(cache)}' AS x; "

    assert one(cache, attach + "SELECT count(*) FROM x.file") == 3
    run_sql(cache, attach + "CREATE TABLE x.more AS SELECT 1")
    for change in ("DELETE FROM x.file", "DROP TABLE x.file", "INSERT INTO x.file (target_id) VALUES ('a')"):
        with pytest.raises(ConfigError):
            run_sql(cache, attach + change)
    assert path.read_bytes() == before


def test_sql_loads_no_deep_learning_library_and_duckdb_only_when_asked():
    code = """if True:
        import sys
        import vgid.cache.sql
        print(sorted({"torch", "transformers", "vllm", "duckdb", "datasets"} & set(sys.modules)))"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert output.stdout == "[]\n"
