"""What is sound has no finding; what breaks a rule of the format has one that names file and row."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from sound_targets import ADAPTIVE, FIXED, NUM_TOPK, VOCAB_SIZE, sound_lists, sound_target, token_table, write_sound
from synthetic_targets import IDENTITY, target_lists
from tampering import Row, change_manifest, change_part, change_rows, manifest_path, parts_of

from vgid.cache.manifest import manifest_name, purge_before
from vgid.cache.reader import open_cache
from vgid.cache.store import LocalStore
from vgid.cache.verify import MOST_LISTED, Finding, Report, verify_cache
from vgid.cache.writer import CacheWriter, write_part

AT = 2
"""The token that is broken, of five."""


def verify(cache: Path) -> Report:
    return verify_cache(open_cache(cache))


def errors(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity == "error"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """A cache of fixed and one of adaptive width, four rows in each of two splits, in two manifests."""
    caches = {}
    for name, stored in (("fixed", FIXED), ("adaptive", ADAPTIVE)):
        caches[name] = tmp_path_factory.mktemp("sound") / name
        for split in ("forget", "retain"):
            write_sound(
                caches[name], [sound_target(i, split=split, settings=stored) for i in range(4)], settings=stored
            )
    return caches


@pytest.fixture
def cache(written, tmp_path) -> Path:
    shutil.copytree(written["fixed"], tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def adaptive(written, tmp_path) -> Path:
    shutil.copytree(written["adaptive"], tmp_path / "cache")
    return tmp_path / "cache"


# --- what is sound ---


@pytest.mark.parametrize("which", ["fixed", "adaptive"])
def test_a_sound_cache_has_no_finding(written, which):
    report = verify(written[which])

    assert (report.findings, report.counts, report.num_errors) == ((), {}, 0)
    assert (report.parts, report.rows, report.tokens) == (2, 8, 40)


@settings(max_examples=60)
@given(rows=sound_lists())
def test_whatever_logits_a_teacher_has_its_rows_are_sound(rows):
    with TemporaryDirectory() as directory:
        write_sound(Path(directory), rows)
        assert verify(Path(directory)).findings == ()


@settings(max_examples=60)
@given(rows=sound_lists(settings=ADAPTIVE))
def test_so_are_rows_of_adaptive_width(rows):
    with TemporaryDirectory() as directory:
        write_sound(Path(directory), rows, settings=ADAPTIVE)
        assert verify(Path(directory)).findings == ()


@settings(max_examples=60)
@given(rows=target_lists())
def test_rows_of_any_numbers_are_judged_and_not_stumbled_over(rows):
    with TemporaryDirectory() as directory:
        with CacheWriter(Path(directory), **IDENTITY) as writer:
            for row in rows:
                writer.add(row)
        report = verify(Path(directory))
        assert report.rows == len(rows)
        assert {finding.target_id for finding in errors(report)} <= {row.target_id for row in rows}


# --- rows that break a rule ---


Change = Callable[[Row], object]


def put(**values: Any) -> Change:
    return lambda row: row.update(values)


def at(name: str, value: Any) -> Change:
    """Set an entry of the broken token."""
    return lambda row: row[name].__setitem__(AT, value)


def candidate(name: str, rank: int, value: Any) -> Change:
    return lambda row: row[name][AT].__setitem__(rank - 1, value)


def off_grid(row: Row) -> None:
    row["topk_logprobs"][AT][1] = float(np.nextafter(np.float32(row["topk_logprobs"][AT][1]), np.float32(-np.inf)))


def swap_values(row: Row) -> None:
    values = row["topk_logprobs"][AT]
    values[0], values[-1] = values[-1], values[0]


def make_own(row: Row, *, rank: int, stated: int | None = None, off: float = 0) -> None:
    """Let the response token be the candidate of that rank; `stated` and `off` are what the row gets wrong of it."""
    row["token_ids"][AT], row["token_rank"][AT] = row["topk_ids"][AT][rank - 1], stated or rank
    row["token_logprob"][AT] = row["topk_logprobs"][AT][rank - 1] - off


def make_own_a_stranger(row: Row, *, rank: int, logprob: float) -> None:
    stranger = next(i for i in range(5, VOCAB_SIZE) if i not in row["topk_ids"][AT])
    row["token_ids"][AT], row["token_logprob"][AT], row["token_rank"][AT] = stranger, logprob, rank


def empty(row: Row) -> None:
    row.update({name: [] for name, value in row.items() if isinstance(value, list)})


def one_more_candidate(row: Row) -> None:
    row["topk_ids"][AT].append(next(i for i in range(5, VOCAB_SIZE) if i not in row["topk_ids"][AT]))
    row["topk_logprobs"][AT].append(-60000.0)


NAN, INF = float("nan"), float("inf")
BROKEN: dict[str, tuple[Change, str, int | None, str]] = {
    "an unknown view": (put(view="blur"), "value", None, "'blur', not one of base"),
    "an unknown modality": (put(modality="audio"), "value", None, "'audio'"),
    "an unknown response kind": (put(response_kind="dreamt"), "value", None, "'dreamt'"),
    "an unknown finish reason": (put(finish_reason="eos"), "value", None, "'eos'"),
    "a draw before the first": (put(draw=-1), "value", None, "draw is -1"),
    "a sample before the first": (put(sample=-2), "value", None, "sample is -2"),
    "noise without a name": (put(perturbation=None), "null", None, "perturbation is null"),
    "noise without a strength": (put(strength=None), "null", None, "strength is null"),
    "an instruction without a name": (put(icu_id=None), "null", None, "icu_id is null"),
    "an instruction in another view": (put(view="noise"), "null", None, "icu_id has a value although view is 'noise'"),
    "an image without a hash": (put(image_sha256=None), "null", None, "image_sha256 is null"),
    "pixels without a hash": (put(pixel_sha256=None), "null", None, "pixel_sha256 is null"),
    "an image in a text row": (put(modality="text"), "null", None, "image_sha256 has a value"),
    "facts marked in the teacher's words": (put(fact_mask=[True] * 5), "null", None, "fact_mask has a value"),
    "a null log-probability": (at("token_logprob", None), "null", AT, "an entry of token_logprob is null"),
    "a null candidate": (candidate("topk_ids", 1, None), "null", AT, "an entry of topk_ids is null"),
    "null candidates": (at("topk_logprobs", None), "null", AT, "an entry of topk_logprobs is null"),
    "a rank too few": (lambda row: row["token_rank"].pop(), "length", None, "token_rank has 4 entries for 5 token_ids"),
    "a position too few": (lambda row: row["topk_logprobs"].pop(), "length", None, "topk_logprobs has 4 entries"),
    "a tail too few": (lambda row: row["tail_logprob"].pop(), "length", None, "tail_logprob has 4"),
    "a candidate without a value": (
        lambda row: row["topk_logprobs"][AT].pop(),
        "length",
        AT,
        "8 topk_ids for 7 topk_logprobs",
    ),
    "no response": (empty, "length", None, "no response token"),
    "a log-probability that is no number": (at("token_logprob", NAN), "nan", AT, "token_logprob is NaN"),
    "a tail that is no number": (at("tail_logprob", NAN), "nan", AT, "tail_logprob is NaN"),
    "a logsumexp that is no number": (at("logsumexp", NAN), "nan", AT, "logsumexp is NaN"),
    "an entropy that is no number": (at("entropy", NAN), "nan", AT, "entropy is NaN"),
    "a candidate that is no number": (candidate("topk_logprobs", 3, NAN), "nan", AT, "of candidate 3 is NaN"),
    "an infinite logsumexp": (at("logsumexp", INF), "value", AT, "logsumexp is inf"),
    "an entropy below 0": (at("entropy", -0.01), "value", AT, "entropy is -0.01"),
    "an entropy above that of chance": (at("entropy", 3.7), "value", AT, "not in [0, 3.6889]"),
    "a probability above 1": (at("token_logprob", 0.01), "logprob", AT, "token_logprob is 0.01, above 0"),
    "a tail above 1": (at("tail_logprob", 0.01), "logprob", AT, "tail_logprob is 0.01"),
    "a candidate above 1": (candidate("topk_logprobs", 1, 0.25), "logprob", AT, "candidate 1 has log-probability 0.25"),
    "a token beyond the vocabulary": (at("token_ids", VOCAB_SIZE), "range", AT, "token_ids is 40, not in [0, 39]"),
    "a token below 0": (at("token_ids", -1), "range", AT, "token_ids is -1"),
    "a candidate beyond the vocabulary": (candidate("topk_ids", 4, 40), "range", AT, "candidate 4 has id 40"),
    "a candidate below 0": (candidate("topk_ids", 8, -1), "range", AT, "candidate 8 has id -1"),
    "a rank of 0": (at("token_rank", 0), "range", AT, "token_rank is 0, not in [1, 40]"),
    "a rank beyond the vocabulary": (at("token_rank", 41), "range", AT, "token_rank is 41"),
    "an id that stands twice": (
        lambda row: row["topk_ids"][AT].__setitem__(5, row["topk_ids"][AT][1]),
        "twice",
        AT,
        "an id stands twice among its candidates",
    ),
    "a value off the grid": (off_grid, "grid", AT, "candidate 2"),
    "candidates out of order": (swap_values, "order", AT, "candidate 1"),
    "a tail that is too heavy": (at("tail_logprob", -1.0), "mass", AT, "together not 1"),
    "a tail left out": (at("tail_logprob", -INF), "mass", AT, "the tail is 0.000000"),
    "more candidates than k": (one_more_candidate, "width", AT, "9 candidates, num_topk of the settings is 8"),
    "a log-probability unlike the candidate's": (
        lambda row: make_own(row, rank=2, off=0.02),
        "rank",
        AT,
        "but the token's candidate has",
    ),
    "a rank of another candidate": (lambda row: make_own(row, rank=2, stated=5), "rank", AT, "of that rank has"),
    "a rank beyond the candidates of one of them": (
        lambda row: make_own(row, rank=2, stated=NUM_TOPK + 3),
        "rank",
        AT,
        "beyond the 8 candidates, but the token is one of them",
    ),
    "a rank among candidates that lack the token": (
        lambda row: make_own_a_stranger(row, rank=3, logprob=-30.0),
        "rank",
        AT,
        "none of the 8 candidates",
    ),
    "a token outside that is likelier than one inside": (
        lambda row: make_own_a_stranger(row, rank=9, logprob=row["topk_logprobs"][AT][-1] + 0.1),
        "rank",
        AT,
        "above the last of them",
    ),
    "a stop without an end": (lambda row: row["token_ids"].__setitem__(4, 7), "end", 4, "'stop', but the last token 7"),
    "a cut after the end": (put(finish_reason="length"), "end", 4, "'length', but the last token 0 ends a turn"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found_and_named_with_file_and_row(cache, name):
    change, rule, position, words = BROKEN[name]
    path = change_rows(cache, lambda rows: change(rows[1]))
    broken = pq.read_table(cache / path)["target_id"][1].as_py()

    report = verify(cache)

    assert {(f.file, f.row, f.target_id) for f in errors(report)} == {(path, 1, broken)}
    assert any((f.rule, f.position) == (rule, position) and words in f.message for f in errors(report)), report.findings
    assert report.num_errors >= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(fact_mask=None), "fact_mask is null although response_kind is 'reference'"),
        (put(noise_seed=3), "noise_seed has a value although view is 'base'"),
        (put(icu_id="generic-v1"), "icu_id has a value although view is 'base'"),
    ],
)
def test_what_a_reference_row_may_lack_or_hold(cache, change, words):
    change_rows(cache, lambda rows: change(rows[2]), part=1)

    assert [(f.rule, f.row, f.message) for f in verify(cache).findings] == [("null", 2, words)]


def too_few(row: Row) -> None:
    for name in ("topk_ids", "topk_logprobs"):
        row[name][AT] = row[name][AT][:1]


def too_soon(row: Row) -> None:
    """Enough by `min_k`, not by `top_p`; the tail is made to fit."""
    cut(row, 2)


def too_late(row: Row) -> None:
    row["topk_ids"][AT], row["topk_logprobs"][AT] = [3, 4, 5, 6], [-0.01, -7.0, -8.0, -9.0]
    fit_tail(row)


def cut(row: Row, width: int) -> None:
    row["topk_ids"][AT], row["topk_logprobs"][AT] = [3, 4, 5, 6][:width], [-1.25, -1.5, -1.75, -2.0][:width]
    fit_tail(row)


def fit_tail(row: Row) -> None:
    row["tail_logprob"][AT] = float(np.log(1 - np.exp(row["topk_logprobs"][AT]).sum()))
    row["token_ids"][AT], row["token_logprob"][AT], row["token_rank"][AT] = 30, -20.0, 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (too_few, "1 candidates, min_k of the settings is 2"),
        (too_soon, "2 candidates that sum to 0.509635 are not the fewest that reach top_p 0.9"),
        (too_late, "4 candidates that sum to 0.99142"),
    ],
)
def test_an_adaptive_width_that_is_not_the_fewest_is_found(adaptive, change, words):
    change_rows(adaptive, lambda rows: change(rows[1]))

    found = [finding for finding in verify(adaptive).findings if finding.rule == "width"]

    assert {(f.row, f.position) for f in found} == {(1, AT)} and found[0].message.startswith(words)


@pytest.mark.parametrize(
    ("place", "name", "value", "words"),
    [
        ("teacher", "vocab_size", "40", "vocab_size is '40', not a whole number from 1"),
        ("teacher", "vocab_size", 0, "vocab_size is 0, not a whole number from 1"),
        ("settings", "num_topk", "8", "num_topk is '8', not a whole number from 1"),
        ("settings", "min_k", [2], "min_k is [2], not a whole number from 1"),
        ("settings", "min_k", True, "min_k is True, not a whole number from 1"),
        ("settings", "top_p", "0.9", "top_p is '0.9', not a number between 0 and 1"),
        ("settings", "top_p", 90, "top_p is 90, not a number between 0 and 1"),
    ],
)
def test_a_manifest_that_says_nonsense_about_its_rows_is_found_and_its_rows_are_still_read(
    adaptive, place, name, value, words
):
    change_manifest(adaptive, lambda body: body[place].update({name: value}))

    report = verify(adaptive)

    first = report.findings[0]
    assert (first.rule, adaptive / first.file, first.message) == ("value", manifest_path(adaptive), words)
    assert report.rows == 8


def test_equal_candidates_may_stand_in_any_order(cache):
    def tie(row: Row) -> None:
        row["topk_ids"][AT], row["topk_logprobs"][AT] = [3, 4, 5, 6], [-1.25, -1.5, -1.5, -1.5]
        fit_tail(row)
        row["token_ids"][AT], row["token_logprob"][AT], row["token_rank"][AT] = 4, -1.5, 4

    change_rows(cache, lambda rows: tie(rows[0]))

    assert verify(cache).findings == ()


def test_a_token_that_the_table_lacks_is_a_note(tmp_path):
    """A model's logits may be wider than its tokenizer, and a random model says such tokens."""
    row = sound_target(0)
    lacking = int(row.token_ids[AT])
    write_sound(tmp_path, [row], vocabulary=lambda: [token for token in token_table() if token.token_id != lacking])

    report = verify(tmp_path)

    assert [(f.severity, f.rule, f.position, f.message) for f in report.findings] == [
        ("note", "token", AT, f"token {lacking} is not in the token table")
    ]
    assert report.num_errors == 0


def test_of_many_rows_that_are_wrong_alike_some_are_listed_and_all_are_counted(tmp_path):
    rows = [sound_target(index, num_tokens=2) for index in range(3 * MOST_LISTED)]
    write_sound(tmp_path, rows, rows_per_part=MOST_LISTED)
    for part in range(3):
        change_rows(tmp_path, lambda rows: [row.update(draw=-1, entropy=[NAN, 0.5]) for row in rows], part=part)

    report = verify(tmp_path)

    assert report.counts == {"value": 3 * MOST_LISTED, "nan": 3 * MOST_LISTED}
    assert len(report.findings) == 2 * MOST_LISTED and report.num_errors == 6 * MOST_LISTED


# --- files that are not what the manifest says ---


def said(**values: Any) -> Callable[[Path], object]:
    return lambda cache: change_manifest(cache, lambda body: body["parts"][0].update(values))


def rename(cache: Path) -> None:
    path = parts_of(cache)[0]["path"]
    other = path.replace("part-", "part-000000")[: -len("000000.parquet")] + ".parquet"
    (cache / path).rename(cache / other)
    change_manifest(cache, lambda body: body["parts"][0].update(path=other))


def lose_a_page(data: bytes) -> bytes:
    """A bit of the first page of token ids."""
    chunk = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(20)
    assert chunk.path_in_schema.startswith("token_ids")
    place = chunk.data_page_offset + chunk.total_compressed_size - 1
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def without_entropy(data: bytes) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pq.read_table(pa.BufferReader(data)).drop_columns(["entropy"]), sink)
    return sink.getvalue()


def double(cache: Path) -> None:
    """Commit the first row once more, in a part of its own."""
    store, row = LocalStore(cache), next(open_cache(cache).iter_targets())
    part = write_part(store, [row])
    change_manifest(cache, lambda body: body["parts"].append(json.loads(json.dumps(asdict(part)))))
    change_manifest(cache, lambda body: body["parts"].sort(key=lambda part: part["path"]))


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        (said(sha256="ab" * 32), "file", "the manifest says abababababab"),
        (lambda cache: (cache / parts_of(cache)[0]["path"]).unlink(), "file", "cannot be read"),
        (lambda cache: change_part(cache, lose_a_page), "file", "damaged"),
        (lambda cache: change_part(cache, without_entropy), "file", "columns"),
        (lambda cache: change_part(cache, lambda _: b""), "file", "damaged"),
        (rename, "name", "its rows make the name part-"),
        (said(rows=3), "count", "rows is 4, the manifest says 3"),
        (said(tokens=3), "count", "tokens is 20, the manifest says 3"),
        (said(bytes=3), "count", "the manifest says 3"),
        (said(kinds=[]), "count", "kinds is (Kind(view='noise+icu'"),
        (lambda cache: change_rows(cache, lambda rows: rows.clear()), "count", "it has no rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_part_that_is_not_what_the_manifest_says_is_found(cache, change, rule, words):
    change(cache)

    found = errors(verify(cache))

    assert {finding.file for finding in found} == {parts_of(cache)[0]["path"]}
    assert any(finding.rule == rule and words in finding.message for finding in found), found


@pytest.mark.parametrize(
    ("change", "rule", "rows", "words"),
    [
        (lambda rows: rows.reverse(), "order", [1, 2, 3], "not above that of the row before"),
        (lambda rows: rows[2].update(split="retain"), "group", [2], "split is 'retain', the manifest says 'forget'"),
        (lambda rows: rows[2].update(engine_id="x"), "group", [2], "engine_id is 'x', the manifest says 'synthetic'"),
        (lambda rows: rows[2].update(target_id=rows[1]["target_id"]), "twice", [1, 2], "more than once"),
    ],
)
def test_rows_that_do_not_belong_in_their_part_are_found(cache, change, rule, rows, words):
    path = change_rows(cache, change)

    found = [finding for finding in verify(cache).findings if finding.rule == rule]

    assert [(f.file, f.row) for f in found] == [(path, row) for row in rows] and words in found[0].message


def test_a_row_in_two_parts_is_found_in_both(cache):
    double(cache)

    found = verify(cache).findings

    assert {finding.rule for finding in found} == {"twice"} and len({finding.file for finding in found}) == 2
    assert len({finding.target_id for finding in found}) == 1


def test_one_bad_part_does_not_hide_another(cache):
    for part in parts_of(cache):
        (cache / part["path"]).write_bytes(b"")

    assert [finding.file for finding in verify(cache).findings] == [part["path"] for part in parts_of(cache)]


# --- the token table and the manifests ---


def change_vocabulary(cache: Path, change: Callable[[pa.Table], pa.Table], **said: Any) -> None:
    body = json.loads(manifest_path(cache).read_bytes())
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(cache / body["vocabulary"]["path"])), sink)
    digest = sha256(sink.getvalue()).hexdigest()
    path = f"vocabulary/{digest[:24]}.parquet"
    (cache / path).write_bytes(sink.getvalue())
    said = {"path": path, "sha256": digest, "bytes": len(sink.getvalue()), **said}
    change_manifest(cache, lambda body: body["vocabulary"].update(said))


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        (lambda cache: next((cache / "vocabulary").iterdir()).unlink(), "file", "cannot be read"),
        (lambda cache: next((cache / "vocabulary").iterdir()).write_bytes(b""), "file", "damaged"),
        (lambda cache: change_vocabulary(cache, lambda table: table.drop_columns(["end"])), "file", "its columns are"),
        (lambda cache: change_vocabulary(cache, lambda table: table.take(list(range(39, -1, -1)))), "order", "rising"),
        (
            lambda cache: change_vocabulary(cache, lambda table: table, rows=41),
            "count",
            "40 rows, the manifest says 41",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_token_table_that_is_not_what_it_should_be_is_found(cache, change, rule, words):
    change(cache)

    (found,) = errors(verify(cache))

    assert found.file.startswith("vocabulary/") and found.rule == rule and words in found.message


def test_a_damaged_manifest_that_nothing_reads_any_more_is_found_too(cache):
    (cache / manifest_name(1)).write_bytes((cache / manifest_name(1)).read_bytes()[:-5])

    assert [(f.severity, f.rule, f.file) for f in verify(cache).findings] == [("error", "manifest", manifest_name(1))]


def test_a_purged_manifest_is_sound(cache):
    purge_before(LocalStore(cache), open_cache(cache).manifest.number)

    assert verify(cache).findings == ()


def test_what_writers_leave_and_what_cannot_be_checked_are_notes(tmp_path):
    write_sound(tmp_path, [sound_target(0)], vocabulary=None)
    write_part(LocalStore(tmp_path), [sound_target(1)])
    (tmp_path / "data" / ".tmp-00").write_bytes(b"half")
    change_manifest(tmp_path, lambda body: body.update(teacher={}))

    report = verify(tmp_path)

    assert report.num_errors == 0 and {finding.severity for finding in report.findings} == {"note"}
    assert report.counts == {"leftover": 2, "unchecked": 2}


def test_every_part_is_told_as_progress(cache):
    told: list[tuple[int, int]] = []
    verify_cache(open_cache(cache), progress=lambda done, total: told.append((done, total)))

    assert told == [(1, 2), (2, 2)]
