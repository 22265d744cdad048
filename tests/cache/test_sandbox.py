"""What SQL over a cache cannot do. `test_sandbox_versions.py` runs this file against every DuckDB that vgid allows."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import duckdb
import pytest
from synthetic_targets import IDENTITY, make_target

from vgid.cache.reader import open_cache
from vgid.cache.sandbox import CommittedFiles
from vgid.cache.sql import connect, run_sql
from vgid.cache.store import LocalStore
from vgid.cache.vocabulary import Token
from vgid.cache.writer import CacheWriter, write_part
from vgid.errors import CacheError, ConfigError

ROWS = [make_target(index, num_tokens=2 + index) for index in range(3)] + [make_target(9, split="retain")]
TOKENS = [Token(token_id=index, text=f"t{index}", special=False, end=False) for index in range(10)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache whose parent folder holds things worth stealing."""
    outside = tmp_path_factory.mktemp("sandbox")
    make_loot(outside)
    write(outside / "cache", ROWS)
    return outside / "cache"


def make_loot(folder: Path) -> None:
    (folder / "secret.csv").write_text("secret\n1\n")
    (folder / "secret.json").write_text('{"secret": 1}\n')
    with closing(duckdb.connect(str(folder / "secret.db"))) as connection:
        connection.execute("CREATE TABLE secret AS SELECT 1 AS secret")
        connection.execute(f"COPY secret TO '{folder}/secret.parquet'")
        connection.execute(f"EXPORT DATABASE '{folder}/exported'")


def write(path: Path, rows) -> None:
    with CacheWriter(path, **IDENTITY, vocabulary=lambda: TOKENS) as writer:
        for row in rows:
            writer.add(row)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# These work in a DuckDB that is not locked up, which a test below shows: they are refused for what they do.
THAT_WOULD_WORK = [
    "COPY (SELECT 1) TO '{outside}/x.csv'",
    "COPY (SELECT 1) TO '{outside}/x' (FORMAT parquet, PER_THREAD_OUTPUT)",
    "COPY (SELECT 1 AS a) TO '{outside}/x' (FORMAT parquet, PARTITION_BY a, WRITE_PARTITION_COLUMNS true)",
    "COPY (SELECT 1) TO '/dev/null'",
    "WITH x AS (COPY (SELECT 1) TO '{outside}/x.csv') SELECT 1",
    "WITH x AS (COPY (SELECT 1) TO '{outside}/x.csv') SELECT * FROM x",
    "WITH x AS MATERIALIZED (COPY (SELECT 1) TO '{outside}/x.csv') SELECT 1",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{outside}/x.csv'",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{outside}/x.csv'",
    "PREPARE p AS COPY (SELECT 1) TO '{outside}/x.csv'; EXECUTE p",
    "CREATE TABLE t AS SELECT 1; EXPORT DATABASE '{outside}/x' (FORMAT parquet)",
    "ATTACH '{outside}/x.db' AS x",
    "ATTACH '{outside}/secret.db' AS x (READ_ONLY)",
    "EXPORT DATABASE '{outside}/x'",
    "IMPORT DATABASE '{outside}/exported'",
    "PRAGMA import_database('{outside}/exported')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM '{outside}/secret.csv'",
    "SELECT * FROM '{outside}/secret.db'",
    "SELECT * FROM read_text('{outside}/secret.csv')",
    "SELECT * FROM read_text('file://{outside}/secret.csv')",
    "SELECT * FROM read_text('{outside}/cache/../secret.csv')",
    "SELECT * FROM read_csv('{outside}/secret.csv')",
    "SELECT * FROM read_json('{outside}/secret.json')",
    "SELECT * FROM read_ndjson_objects('{outside}/secret.json')",
    "SELECT * FROM read_duckdb('{outside}/secret.db')",
    "SELECT * FROM sniff_csv('{outside}/secret.csv')",
    "SELECT * FROM read_single_csv_file('{outside}/secret.csv')",
    "SELECT * FROM read_single_parquet_file('{outside}/secret.parquet')",
    "SELECT * FROM parquet_scan('{outside}/secret.parquet')",
    "SELECT * FROM parquet_metadata('{outside}/secret.parquet')",
    "SELECT * FROM parquet_kv_metadata('{outside}/secret.parquet')",
    "SELECT * FROM parquet_schema('{outside}/secret.parquet')",
    "SELECT * FROM parquet_file_metadata('{outside}/secret.parquet')",
    "SELECT * FROM parquet_full_metadata('{outside}/secret.parquet')",
    "SELECT * FROM parquet_bloom_probe('{outside}/secret.parquet', 'secret', 1)",
    "SELECT * FROM glob('{outside}/*')",
    "SELECT * FROM glob('/etc/*')",
    "CREATE TABLE t (a VARCHAR); COPY t FROM '{outside}/secret.csv'",
    "CREATE TABLE t (a VARCHAR); INSERT INTO t SELECT content FROM read_text('{outside}/secret.csv')",
    "CREATE MACRO m() AS TABLE SELECT * FROM read_text('{outside}/secret.csv'); SELECT * FROM m()",
    "CREATE VIEW v AS SELECT * FROM read_text('{outside}/secret.csv')",
    "PREPARE p AS SELECT * FROM read_text($1); EXECUTE p('{outside}/secret.csv')",
    "SELECT * FROM query('SELECT * FROM read_text(''{outside}/secret.csv'')')",
    "SELECT * FROM query_table('{outside}/secret.csv')",
    "SET VARIABLE f = '{outside}/secret.csv'; SELECT * FROM read_text(getvariable('f'))",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{outside}/secret.csv'')'))",
    "SET lock_configuration = false",
    "SET GLOBAL lock_configuration = false",
    "RESET lock_configuration",
    "SET allowed_paths = ['{outside}/secret.csv']",
    "SET allowed_directories = ['{outside}']",
    "RESET allowed_directories",
    "SET temp_directory = '{outside}'",
    "SET home_directory = '{outside}'",
    "SET secret_directory = '{outside}'",
    "SET file_search_path = '{outside}'",
    "SET disabled_filesystems = ''",
    "RESET disabled_filesystems",
    "SET memory_limit = '1GB'",
    "SET threads = 2",
    "SET python_enable_replacements = true",
    "SET python_scan_all_frames = true",
    "SET log_query_path = '{outside}/log'",
    "SET enable_logging = true",
    "PRAGMA enable_profiling",
    "PRAGMA profiling_output = '{outside}/profile.txt'",
    "CALL enable_profiling(save_location = '{outside}/profile.txt')",
    "CALL enable_logging(storage = 'file', storage_path = '{outside}/log')",
    "CALL enable_logging('FileSystem')",
]

# These find nothing where there is no cache, network or extension; or should not work anywhere.
WITHOUT_EFFECT_ELSEWHERE = [
    "COPY (SELECT 1) TO 'vgid://x.csv'",
    "COPY (SELECT 1) TO 'vgid://{part}.new' (FORMAT json)",
    "COPY targets TO 'vgid://{part}' (FORMAT parquet)",
    "COPY targets TO 'vgid://{part}' (FORMAT parquet, USE_TMP_FILE false)",
    "COPY (SELECT 1) TO 'vgid://data/new' (FORMAT parquet, PER_THREAD_OUTPUT)",
    "COPY targets TO 'vgid://data/new' (FORMAT parquet, PARTITION_BY split)",
    "COPY (SELECT 1) TO '{cache}/x.csv'",
    "COPY (SELECT 1) TO 'x.csv'",
    "COPY (SELECT 1) TO 'memory://x.csv'",
    "COPY (SELECT 1) TO 's3://bucket/x.csv'",
    "WITH x AS (COPY (SELECT 1) TO 'vgid://x.csv') SELECT 1",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO 'vgid://x.csv'",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{outside}/x.csv''')",
    "ATTACH 'vgid://x.db' AS x",
    "ATTACH 'https://example.org/x.db' AS x",
    "ATTACH 'postgres:host=localhost' AS x",
    "ATTACH 'ducklake:{outside}/x' AS x",
    "ATTACH 'quack:localhost' AS x",
    "ATTACH '{outside}/secret.db' AS x (TYPE sqlite)",
    "EXPORT DATABASE 'vgid://x'",
    "IMPORT DATABASE 'vgid://data'",
    "SELECT * FROM read_text('vgid://README.md')",
    "SELECT * FROM read_text('VGID://README.md')",
    "SELECT * FROM read_text('vgid://[R]EADME.md')",
    "SELECT * FROM read_text('vgid://manifest/000001.json')",
    "SELECT * FROM read_text('vgid://manifest/*')",
    "SELECT * FROM read_text('vgid://../secret.csv')",
    "SELECT * FROM read_text('vgid://%2e%2e/secret.csv')",
    "SELECT * FROM read_text('vgid://data/..%2f..%2fsecret.csv')",
    "SELECT * FROM read_text('vgid:{outside}/secret.csv')",
    "SELECT * FROM read_text('vgid://{outside}/secret.csv')",
    "SELECT * FROM read_text('vgid://{part}/../../../../secret.csv')",
    "SELECT * FROM read_text('vgid://{part}?/../README.md')",
    "SELECT * FROM read_text('vgid://{part}#')",
    "SELECT * FROM read_text('vgid://{part}\0/../README.md')",
    "SELECT * FROM read_text('vgid://./{part}')",
    "SELECT * FROM read_blob('vgid:///etc/passwd')",
    "SELECT * FROM read_blob(['vgid://{part}', '/etc/passwd'])",
    "SELECT * FROM read_parquet('{cache}/{part}')",
    "SELECT * FROM read_parquet(['vgid://{part}', '{outside}/secret.parquet'])",
    "SELECT * FROM glob('vgid://../*')",
    "SELECT * FROM glob('vgid://data/../../*')",
    "SELECT * FROM glob('vgid://%2e%2e/*')",
    "SELECT * FROM glob('**')",
    "SELECT * FROM read_text('{cache}/README.md')",
    "SELECT * FROM read_text('local://{outside}/secret.csv')",
    "SELECT * FROM read_text('memory://secret.csv')",
    "SELECT * FROM read_text('DUCKDB_INTERNAL_OBJECTSTORE://secret.csv')",
    "SELECT * FROM read_csv('https://example.org/x.csv')",
    "SELECT * FROM 'https://example.org/x.parquet'",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT * FROM 'hf://datasets/a/b/x.parquet'",
    "SELECT * FROM 'gcs://bucket/x.parquet'",
    "SELECT * FROM 'az://bucket/x.parquet'",
    "SELECT * FROM read_xlsx('{outside}/x.xlsx')",
    "SELECT * FROM st_read('{outside}/x.shp')",
    "SELECT * FROM sqlite_scan('{outside}/secret.db', 't')",
    "SELECT * FROM iceberg_scan('{outside}')",
    "SELECT * FROM delta_scan('{outside}')",
    "SELECT getenv('HOME')",
    "INSTALL httpfs",
    "INSTALL spatial FROM community",
    "INSTALL '{outside}/x.duckdb_extension'",
    "FORCE INSTALL httpfs FROM '{outside}'",
    "LOAD httpfs",
    "LOAD '{outside}/x.duckdb_extension'",
    "UPDATE EXTENSIONS",
    "SET allow_unsigned_extensions = true",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "SET extension_directories = ['{outside}']",
    "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "CREATE PERSISTENT SECRET s (TYPE s3)",
    "CREATE FUNCTION f() LANGUAGE python AS 'open(1)'",
    # Functions that take a memory address must not be given one.
    "SELECT NULL::POINTER",
    "SELECT * FROM arrow_scan(4096, 4096, 4096)",
    "SELECT * FROM arrow_scan(4096::POINTER, 4096::POINTER, 4096::POINTER)",
    "SELECT * FROM arrow_scan(NULL, NULL, NULL)",
    "SELECT * FROM arrow_scan_dumb(NULL, NULL, NULL)",
    "SELECT * FROM pandas_scan(4096)",
    "SELECT * FROM pandas_scan(NULL)",
    "SELECT * FROM python_arrow_scan(NULL, NULL, NULL)",
    "SELECT * FROM python_map_function((SELECT 1), 4096)",
    "SELECT * FROM seq_scan()",
    "DELETE FROM targets",
    "INSERT INTO targets SELECT * FROM targets",
    "MERGE INTO targets USING (SELECT 1) AS s ON true WHEN MATCHED THEN DELETE",
]


@pytest.mark.parametrize("probe", THAT_WOULD_WORK + WITHOUT_EFFECT_ELSEWHERE)
def test_the_sandbox_refuses(cache, probe):
    outside = cache.parent
    before = contents(outside)
    query = probe.format(outside=outside, cache=cache, part=open_cache(cache).manifest.parts[0].path)

    with pytest.raises(ConfigError):
        run_sql(cache, query)
    assert contents(outside) == before


@pytest.mark.parametrize("probe", THAT_WOULD_WORK)
def test_the_same_probe_works_outside_of_the_sandbox(probe, tmp_path, monkeypatch):
    """Otherwise its refusal, say of a syntax that DuckDB does not know, would show nothing."""
    make_loot(tmp_path)
    (tmp_path / "cache").mkdir()
    monkeypatch.chdir(tmp_path)

    with closing(duckdb.connect()) as connection:
        connection.execute(probe.format(outside=tmp_path))


def test_harmless_queries_are_not_refused(cache):
    part = open_cache(cache).manifest.parts[0].path
    for query in (
        "CREATE TABLE t AS SELECT split FROM targets; SELECT * FROM t",
        "ATTACH ':memory:' AS x; CREATE TABLE x.t AS SELECT 1; SELECT * FROM x.t",
        "SET VARIABLE x = 1; SELECT getvariable('x')",
        f"SELECT * FROM parquet_metadata('vgid://{part}')",
        f"SELECT target_id FROM 'vgid://{part}'",
        "SUMMARIZE shards",
        "PIVOT targets ON view USING count(*) GROUP BY split",
        "EXPLAIN ANALYZE SELECT count(*) FROM tokens",
    ):
        assert run_sql(cache, query).num_rows > 0, query


def test_no_secret_of_the_machine_is_visible(cache, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "planted-key")

    assert run_sql(cache, "SELECT * FROM duckdb_secrets()").num_rows == 0
    settings = run_sql(cache, "SELECT * FROM duckdb_settings()").to_pylist()
    assert "planted-key" not in str(settings)


def test_the_connection_is_locked_down_by_more_than_one_bolt(cache):
    wanted = {
        "enable_external_access": "false",
        "lock_configuration": "true",
        "temp_directory": "",
        "python_enable_replacements": "false",
        "enable_progress_bar": "false",
    }
    table = run_sql(cache, "SELECT name, value FROM duckdb_settings()").to_pylist()

    assert wanted.items() <= {row["name"]: row["value"] for row in table}.items()


def test_a_python_variable_is_no_table(cache):
    rows = open_cache(cache).rows(["target_id"])

    with closing(connect(cache)) as connection, pytest.raises(duckdb.Error, match="does not exist"):
        connection.execute("SELECT * FROM rows").fetchall()
    assert rows.num_rows == 4


def test_only_committed_files_are_seen(tmp_path):
    write(tmp_path, [make_target(0)])
    orphan = write_part(LocalStore(tmp_path), [make_target(1)])

    assert run_sql(tmp_path, "SELECT count(*) AS n FROM targets").to_pylist() == [{"n": 1}]
    folders = run_sql(tmp_path, "SELECT split_part(file, '/', 3) AS f FROM glob('vgid://**') ORDER BY f").to_pydict()
    assert folders["f"] == ["data", "vocabulary"]
    with pytest.raises(ConfigError, match="committed"):
        run_sql(tmp_path, f"SELECT * FROM 'vgid://{orphan.path}'")


def test_a_part_can_be_attached_but_not_changed(cache):
    path = cache / open_cache(cache).manifest.parts[0].path
    before = path.read_bytes()
    attach = f"ATTACH 'vgid://{path.relative_to(cache)}' AS x; "

    assert run_sql(cache, attach + "SELECT count(*) AS n FROM x.file").to_pylist() == [{"n": 3}]
    run_sql(cache, attach + "CREATE TABLE x.more AS SELECT 1")
    for change in ("DELETE FROM x.file", "DROP TABLE x.file", "INSERT INTO x.file (target_id) VALUES ('a')"):
        with pytest.raises(ConfigError):
            run_sql(cache, attach + change)
    assert path.read_bytes() == before


@pytest.mark.parametrize("which", ["part", "vocabulary"])
def test_a_missing_file_is_refused_naming_it(tmp_path, which):
    write(tmp_path, ROWS)
    manifest = open_cache(tmp_path).manifest
    assert manifest.vocabulary is not None
    path = tmp_path / (manifest.parts[1].path if which == "part" else manifest.vocabulary.path)
    path.unlink()

    with pytest.raises(CacheError, match=path.name):
        run_sql(tmp_path, "SELECT token_text, token_logprob FROM tokens")


def test_a_part_damaged_after_the_connection_was_made_is_refused(tmp_path):
    write(tmp_path, ROWS)
    with closing(connect(tmp_path)) as connection:
        path = tmp_path / open_cache(tmp_path).manifest.parts[1].path
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)

        with pytest.raises(duckdb.Error, match=path.name):
            connection.execute("SELECT sum(token_logprob) FROM tokens").fetchall()


def test_threads_that_share_a_handle_read_where_they_seeked_themselves(cache):
    """DuckDB's threads share one, and seek and read in two steps."""
    files = CommittedFiles(open_cache(cache))
    part = files.manifest.parts[0].path
    content = (cache / part).read_bytes()
    handle = files.open(f"vgid://{part}")
    all_have_seeked = threading.Barrier(4)
    found = {}

    def read(position: int) -> None:
        handle.seek(position)
        all_have_seeked.wait()
        found[position] = handle.read(50)

    threads = [threading.Thread(target=read, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {position: content[position : position + 50] for position in (0, 100, 200, 300)}


@pytest.mark.parametrize("memory", ["lots", "", "4 cats"])
def test_a_memory_limit_that_is_none_is_refused(cache, memory):
    with pytest.raises(ConfigError, match="4GB or 50%"):
        run_sql(cache, "SELECT 1", memory=memory)


def test_sql_loads_no_deep_learning_library_and_duckdb_only_when_asked():
    code = """if True:
        import sys
        import vgid.cache.sql
        print(sorted({"torch", "transformers", "vllm", "duckdb", "datasets"} & set(sys.modules)))"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert output.stdout == "[]\n"


def test_a_query_does_not_wait_for_pandas(cache):
    code = """if True:
        import sys
        from vgid.cache.sql import open_query
        with open_query(sys.argv[1], "SELECT * FROM tokens, manifest, shards") as answer:
            rows = sum(batch.num_rows for batch in answer.batches)
        print(rows > 0, "pandas" in sys.modules)"""
    output = subprocess.run([sys.executable, "-c", code, str(cache)], capture_output=True, text=True, check=True)

    assert output.stdout == "True False\n"
