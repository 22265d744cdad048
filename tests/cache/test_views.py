from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_targets import IDENTITY, PLAN, SETTINGS, TEACHER, make_target

from vgid.cache.reader import open_cache
from vgid.cache.schema import NO_CANDIDATE, SCHEMA
from vgid.cache.sql import run_sql
from vgid.cache.views import VIEWS
from vgid.cache.vocabulary import Token
from vgid.cache.writer import CacheWriter

ROWS = [make_target(index, num_tokens=2 + index) for index in range(3)] + [make_target(9, split="retain")]
# The ids of a tokenizer need not be without gaps: two in three have a text.
KNOWN = sorted({int(i) for row in ROWS for i in row.topk_ids.ravel()})
TOKENS = [Token(token_id=i, text=f"text {i}", special=i == KNOWN[0], end=False) for i in KNOWN if i % 3]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("views") / "cache"
    write(path, ROWS, vocabulary=lambda: TOKENS, expires="2031-01-01T00:00:00+00:00")
    return path


def write(path: Path, rows, **options) -> None:
    with CacheWriter(path, **IDENTITY, **options) as writer:
        for row in rows:
            writer.add(row)


def one(cache: Path, query: str):
    return next(iter(run_sql(cache, query).to_pylist()[0].values()))


@pytest.mark.parametrize("view", VIEWS)
def test_every_column_has_a_meaning(cache, view):
    assert run_sql(cache, f"DESCRIBE {view}")["column_name"].to_pylist() == list(VIEWS[view][1])


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


def test_positions_may_store_different_numbers_of_candidates(tmp_path):
    widths = [3, 1, 4]
    row = make_target(0, num_tokens=3)
    missing = np.arange(4) >= np.array(widths)[:, None]
    narrow = replace(
        row,
        topk_ids=np.where(missing, NO_CANDIDATE, row.topk_ids).astype(np.int32),
        topk_logprobs=np.where(missing, -np.inf, row.topk_logprobs).astype(np.float32),
    )
    write(tmp_path, [narrow])

    assert run_sql(tmp_path, "SELECT len(topk_ids) AS k FROM tokens ORDER BY pos")["k"].to_pylist() == widths
    found = run_sql(tmp_path, "SELECT pos, rank, candidate_id, logprob FROM candidates ORDER BY pos, rank").to_pydict()
    assert list(zip(found["pos"], found["rank"], strict=True)) == [
        (p, r + 1) for p, k in enumerate(widths) for r in range(k)
    ]
    assert found["candidate_id"] == row.topk_ids[~missing].tolist()
    assert found["logprob"] == row.topk_logprobs[~missing].tolist()


def test_text_stands_beside_every_id_that_the_token_table_knows(cache):
    texts = {token.token_id: token.text for token in TOKENS}
    assert texts.keys() != set(KNOWN)

    tokens = run_sql(cache, "SELECT token_id, token_text FROM tokens").to_pylist()
    assert [row["token_text"] for row in tokens] == [texts.get(row["token_id"]) for row in tokens]
    candidates = run_sql(cache, "SELECT token_id, token_text, candidate_id, candidate_text FROM candidates").to_pylist()
    assert [row["token_text"] for row in candidates] == [texts.get(row["token_id"]) for row in candidates]
    assert [row["candidate_text"] for row in candidates] == [texts.get(row["candidate_id"]) for row in candidates]
    assert run_sql(cache, "SELECT * FROM vocabulary").num_rows == len(TOKENS)


def test_a_cache_without_a_token_table_has_the_same_rows_without_text(tmp_path):
    write(tmp_path, ROWS)

    assert run_sql(tmp_path, "SELECT * FROM vocabulary").num_rows == 0
    assert one(tmp_path, "SELECT count(*) FROM tokens WHERE token_text IS NULL") == sum(len(r.token_ids) for r in ROWS)
    assert one(tmp_path, "SELECT count(*) FROM candidates WHERE candidate_text IS NULL") == 4 * sum(
        len(row.token_ids) for row in ROWS
    )


@pytest.mark.parametrize(
    ("query", "costly"),
    [
        ("SELECT split, avg(tail_mass) FROM tokens GROUP BY split", {"token_ids", "tail_logprob"}),
        ("SELECT max(rank) FROM candidates", {"token_ids", "topk_ids"}),
        ("SELECT max(entropy) FROM tokens WHERE pos = 0", {"token_ids", "entropy"}),
        ("SELECT max(token_text) FROM tokens", {"token_ids", "text"}),
    ],
)
def test_only_the_lists_and_texts_that_a_query_uses_are_read(cache, query, costly):
    explained = run_sql(cache, f"EXPLAIN (FORMAT json) {query}").to_pylist()[0]["explain_value"]

    def scans(node) -> list[str]:
        own = node["extra_info"].get("Projections", []) if "PARQUET" in node["name"].upper() else []
        return [
            *([own] if isinstance(own, str) else own),
            *(name for child in node["children"] for name in scans(child)),
        ]

    all_lists = {field.name for field in SCHEMA if str(field.type).startswith("list")}
    assert set(scans(json.loads(explained)[0])) & (all_lists | {"text"}) == costly


@pytest.mark.parametrize("column", ["logsumexp", "is_fact", "entropy", "pos", "topk_ids", "split", "token_text"])
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
    for view in VIEWS:
        query = f"SELECT column_name, column_type FROM (DESCRIBE {view})"
        assert run_sql(tmp_path, query) == run_sql(cache, query), view
        assert one(tmp_path, f"SELECT count(*) FROM {view}") == (view == "manifest")


def test_shards_are_the_files_that_the_manifest_names(cache):
    found = run_sql(cache, "SELECT * FROM shards").to_pylist()

    assert [row["path"] for row in found] == [part.path for part in open_cache(cache).manifest.parts]
    for row in found:
        assert row["bytes"] == (cache / row["path"]).stat().st_size
        assert row["bytes_per_token"] == row["bytes"] / row["tokens"]
    assert {row["split"]: (row["rows"], row["tokens"]) for row in found} == {"forget": (3, 9), "retain": (1, 5)}


def test_the_manifest_is_one_row_with_json_in_it(cache):
    (row,) = run_sql(cache, "SELECT * FROM manifest").to_pylist()

    assert [json.loads(row[name]) for name in ("teacher", "settings", "plan")] == [TEACHER, SETTINGS, PLAN]
    assert (row["rows"], row["tokens"], row["expires"]) == (4, 14, "2031-01-01T00:00:00+00:00")
    assert row["bytes"] == one(cache, "SELECT sum(bytes) FROM shards")
    assert one(cache, "SELECT teacher->>'weights_sha256' FROM manifest") == TEACHER["weights_sha256"]
    assert one(cache, "SELECT (settings->'num_topk')::INT FROM manifest") == 4
