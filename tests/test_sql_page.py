"""docs/sql.md and the notebook over the same views: every command, query and cell runs on a cache made by the page."""

import json
import re
import shutil
from pathlib import Path

import pytest
from doc_pages import ROOT, blocks, commands, run

from vgid.cache.sql import run_sql
from vgid.cache.views import VIEWS
from vgid.pipeline.sql_command import print_query

PAGE = ROOT / "docs" / "sql.md"
NOTEBOOK = "notebooks/explore_cache.py"
CACHE = "runs/views"
QUERIES = blocks(PAGE, "sql")
ANSWERED = re.findall(r"```sql\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the page's first command has made its cache; of fewer rows, as this is a test."""
    path = tmp_path_factory.mktemp("page")
    (generate,) = [command for command in commands(PAGE) if command[:2] == ["teacher", "generate"]]
    rows = generate.index("--limit") + 1
    done = run([*generate[:rows], "120", *generate[rows + 1 :]], path)
    assert done.returncode == 0, done.stderr[-2000:]
    (path / "query.sql").write_text(QUERIES[0])
    return path


def test_the_page_answers_at_least_ten_questions_each_with_a_query_and_its_output():
    questions = re.findall(r"^## (\d+)\. (.*)\?$", PAGE.read_text(), re.MULTILINE)
    assert [int(number) for number, _ in questions] == list(range(1, len(questions) + 1))
    assert len(QUERIES) >= len(questions) >= 10
    assert [query for query, _ in ANSWERED] == QUERIES


def test_the_page_names_every_view():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)) == set(VIEWS)


def test_the_commands_of_the_page_run_in_order(folder):
    asked = [command for command in commands(PAGE) if command[0] == "sql"]
    for command in asked:
        done = run(command, folder)
        assert done.returncode == 0 and (done.stdout or "--output" in command), f"{command}\n{done.stderr[-2000:]}"
    assert len(asked) + 1 == len(commands(PAGE)) and (folder / "answer.parquet").exists()


@pytest.mark.parametrize(("query", "printed"), ANSWERED, ids=lambda text: " ".join(text.split())[:50])
def test_a_query_of_the_page_gives_rows_with_the_columns_that_the_page_shows(query, printed, folder, tmp_path):
    answer = tmp_path / "answer.json"
    print_query(
        str(folder / CACHE), query, output_format=None, output=answer, overwrite=False, timeout_s=60, memory="1GB"
    )
    rows = json.loads(answer.read_text())
    header, _, *lines = printed.splitlines()
    assert rows and lines, "an answer without rows teaches nothing"
    assert list(rows[0]) == header.split()


def test_every_cell_of_the_notebook_runs_and_shows_what_is_in_the_cache(folder):
    (exporting,) = [command for command in commands(PAGE, program="marimo") if command[0] == "export"]
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns("__*__"))
    done = run(exporting, folder, module="marimo")
    assert done.returncode == 0, done.stderr[-2000:]  # also if a cell fails
    page = (folder / exporting[exporting.index("--output") + 1]).read_text()
    said = run_sql(folder / CACHE, "SELECT response_text FROM targets WHERE view = 'noise+icu' AND draw = 0 LIMIT 1")
    for text in (said["response_text"][0].as_py(), "forget/forget-", "likeliest", "worst_tail", "median_rank"):
        assert text in page


def test_the_notebook_says_in_one_line_where_there_is_no_cache(folder):
    shutil.copy(ROOT / NOTEBOOK, folder / "alone.py")
    done = run(
        ["export", "html", "alone.py", "--output", "none.html", "--", "--cache", "nowhere"], folder, module="marimo"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nowhere: it holds no manifest, so it is no cache" in (folder / "none.html").read_text()
