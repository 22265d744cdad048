"""`vgid sql` as a user meets it: real processes, files, pipes and a terminal."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_targets import IDENTITY, make_target

from vgid.cache.sql import run_sql
from vgid.cache.views import VIEWS
from vgid.cache.vocabulary import Token
from vgid.cache.writer import CacheWriter

ROWS = [make_target(index, num_tokens=30) for index in range(5)]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
FOR_AGES = "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("command") / "cache"
    tokens = [Token(token_id=int(i), text=f" a\n{i}", special=False, end=False) for i in ROWS[0].token_ids]
    with CacheWriter(path, **IDENTITY, vocabulary=lambda: tokens) as writer:
        for row in ROWS:
            writer.add(row)
    return path


def sql(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "vgid", "sql", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, env=ENVIRONMENT, check=False, timeout=120, input=stdin and stdin.encode()
    )


def on_a_terminal(*arguments: str | Path) -> tuple[str, str]:
    """What stdout (a terminal of 80 columns) and stderr show."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vgid", "sql", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=ENVIRONMENT)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how Linux says that the other end was closed
        pass
    os.close(ours)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    process.stderr.close()
    process.wait()
    return shown.decode().replace("\r\n", "\n"), errors


def only_error_line(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    assert done.returncode == code, done.stderr
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


QUERY = "SELECT * FROM tokens ORDER BY target_id, pos"


def test_csv_has_all_rows_and_lists_as_json(cache):
    rows = list(csv.DictReader(io.StringIO(sql(cache, QUERY, "--format", "csv").stdout.decode())))
    expected = run_sql(cache, QUERY).to_pylist()

    assert len(rows) == 150
    assert [json.loads(row["topk_ids"]) for row in rows] == [row["topk_ids"] for row in expected]
    assert [row["token_text"] or None for row in rows] == [row["token_text"] for row in expected]
    assert [float(row["token_logprob"]) for row in rows] == pytest.approx([row["token_logprob"] for row in expected])


def test_json_is_one_list_of_objects(cache):
    expected = run_sql(cache, QUERY).to_pylist()

    assert json.loads(sql(cache, QUERY, "--format", "json").stdout) == expected
    assert json.loads(sql(cache, "SELECT 1 WHERE false", "--format", "json").stdout) == []


def test_json_knows_no_infinity_and_sums_are_numbers(cache):
    query = "SELECT '-inf'::FLOAT AS a, ['nan'::DOUBLE, 1.5] AS b, sum(rows) AS c, 0.5::DECIMAL(3, 2) AS d FROM shards"

    assert json.loads(sql(cache, query, "--format", "json").stdout) == [{"a": None, "b": [None, 1.5], "c": 5, "d": 0.5}]


def test_parquet_goes_through_a_pipe(cache):
    table = pq.read_table(pa.BufferReader(sql(cache, QUERY, "--format", "parquet").stdout))

    assert table.to_pylist() == run_sql(cache, QUERY).to_pylist()


def test_a_table_in_a_pipe_is_whole(cache):
    lines = sql(cache, QUERY).stdout.decode().splitlines()

    assert len(lines) == 152
    assert ROWS[0].target_id in "".join(lines)


def test_a_table_on_a_terminal_is_cut_and_says_so(cache):
    shown, note = on_a_terminal(cache, QUERY)
    assert len(shown.splitlines()) == 102 and "100 rows" in note
    assert ROWS[0].target_id not in shown and "…" in shown

    shown, note = on_a_terminal(cache, "SELECT response_text, target_id, prompt_sha256 FROM targets")
    assert max(map(len, shown.splitlines())) <= 80 and note == ""
    assert "naïve" in shown


def test_control_characters_stay_within_their_cell(cache):
    lines = sql(cache, "SELECT chr(27) || '[2J' AS a, 'b' || chr(10) || 'c' AS b").stdout.decode().splitlines()

    assert len(lines) == 3 and lines[2] == r"\x1b[2J  b\nc"


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_other_forms_on_a_terminal_are_whole_or_refused(cache, kind):
    shown, errors = on_a_terminal(cache, "SELECT target_id, pos FROM tokens", "--format", kind)

    if kind == "parquet":
        assert shown == "" and "--output" in errors
    else:
        assert errors == "" and all(row.target_id in shown for row in ROWS)
        assert len(shown.splitlines()) >= 150


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_an_output_file_is_named_after_its_form_private_and_never_overwritten_unasked(cache, tmp_path, kind):
    file = tmp_path / f"rows.{kind}"

    done = sql(cache, QUERY, "--output", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert file.stat().st_mode & 0o777 == 0o600
    piped = sql(cache, QUERY, "--format", kind).stdout
    assert file.read_bytes() == piped

    assert "--overwrite" in only_error_line(sql(cache, "SELECT 1", "--output", file), 2)
    assert file.read_bytes() == piped
    assert sql(cache, "SELECT 1 AS a", "--output", file, "--overwrite").returncode == 0
    assert file.read_bytes() != piped and os.listdir(tmp_path) == [file.name]


@pytest.mark.parametrize(
    ("query", "limit"),
    [
        ("SELECT nope FROM tokens", []),
        ("SELECT a.range FROM range(1000000) a, range(1000000) b", ["--timeout", "1"]),
    ],
)
def test_a_query_that_fails_leaves_no_file(cache, tmp_path, query, limit):
    only_error_line(sql(cache, query, "--output", tmp_path / "x.csv", *limit), 2)

    assert os.listdir(tmp_path) == []


def test_a_query_comes_from_a_file_or_stdin(cache, tmp_path):
    (tmp_path / "query.sql").write_text("-- how many\nSELECT count(*) AS n\nFROM targets;\n")

    assert sql(cache, "--file", tmp_path / "query.sql", "--format", "csv").stdout == b'"n"\n5\n'
    assert sql(cache, "--file", "-", "--format", "csv", stdin="SELECT 7 AS n").stdout == b'"n"\n7\n'


def test_without_a_query_the_views_are_explained(cache):
    shown = sql(cache).stdout.decode()

    for view, (meaning, columns) in VIEWS.items():
        assert f"{view}: {meaning}\n" in shown
        assert all(f"  {column} " in shown for column in columns)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["SELECT 1", "--file", "x.sql"], 2, "twice"),
        (["--file", "nowhere.sql"], 2, "nowhere.sql"),
        (["SELECT 1", "--format", "xml"], 2, "parquet"),
        (["SELECT 1", "--output", "no/such/folder/x.csv"], 2, "no folder"),
        (["SELECT 1", "--memory", "lots"], 2, "4GB"),
        (["SELECT * FROM read_text('/etc/passwd')"], 2, "committed files"),
        ([FOR_AGES, "--timeout", "0.5"], 2, "raise --timeout"),
        (["SELECT count(*) FROM (SELECT range FROM range(100000000) GROUP BY ALL)", "--memory", "50MB"], 2, "--memory"),
    ],
)
def test_what_goes_wrong_is_one_line(cache, arguments, code, words):
    assert words in only_error_line(sql(cache, *arguments), code)


def test_no_cache_is_one_line(tmp_path):
    assert "vgid teacher generate" in only_error_line(sql(tmp_path / "nowhere"), 1)


def test_a_reader_that_goes_away_is_no_error(cache):
    command = [sys.executable, "-m", "vgid", "sql", str(cache), "SELECT range FROM range(10000000)", "--format", "csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b'"range"\n'
    process.stdout.close()

    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(timeout=60)


def test_ctrl_c_stops_a_running_query(cache, tmp_path):
    query = "SELECT a.range FROM range(1000000) a, range(1000000) b"
    command = [sys.executable, "-m", "vgid", "sql", str(cache), query, "--output", str(tmp_path / "x.csv")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        # A shell's background jobs ignore Ctrl-C and hand that down: to the test run, and from it to this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not os.listdir(tmp_path):  # the file is begun once rows come
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    (line,) = errors.decode().splitlines()
    assert line.startswith("error: interrupted")
    assert os.listdir(tmp_path) == []
