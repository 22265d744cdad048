"""When two runs are the same run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from distill_cases import Oracle, make_settings

from vgid.errors import DistillError
from vgid.stage2_distill.lineage import FILE, check_same_run, read_finished, run_identity


def test_a_student_is_known_by_its_weights_wherever_it_lies(qwen: Oracle, tmp_path: Path) -> None:
    shutil.copytree(qwen.path, tmp_path / "moved")
    here = run_identity(str(qwen.path), settings=make_settings(), provenance={"a": (1, 2)})
    there = run_identity(str(tmp_path / "moved"), settings=make_settings(), provenance={"a": [1, 2]})
    check_same_run(here, asked=there, where=tmp_path)
    assert here == json.loads(json.dumps(here))


def test_every_difference_is_named_with_both_values(qwen: Oracle, teacher: Oracle, tmp_path: Path) -> None:
    found = run_identity(str(qwen.path), settings=make_settings(), provenance={"manifest": "aa", "old": 1})
    asked = run_identity(str(teacher.path), settings=make_settings(seed=7), provenance={"manifest": "bb"})
    with pytest.raises(DistillError) as caught:
        check_same_run(found, asked=asked, where=tmp_path / "out")
    message = str(caught.value)
    for part in ("out belongs to another run", "provenance.manifest is 'aa' there and 'bb' now", "settings.seed is 0"):
        assert part in message
    assert "provenance.old is 1 there and None now" in message and "student is " in message
    assert "learning_rate" not in message and "\n" not in message


def test_nothing_and_an_empty_directory_are_unfinished(tmp_path: Path) -> None:
    assert read_finished(tmp_path) is None
    assert read_finished(tmp_path / "absent") is None


WHOLE: dict[str, Any] = {
    "base": "some/base",
    "identity": {"student": "aa", "settings": {}, "provenance": {}},
    "result": {"losses": []},
}


def test_a_whole_lineage_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(WHOLE))
    assert read_finished(tmp_path) == WHOLE


@pytest.mark.parametrize(
    "text",
    [
        "",
        json.dumps(WHOLE)[:-9],
        "[]",
        json.dumps({**WHOLE, "identity": {"student": "aa", "settings": {}}}),
        json.dumps({**WHOLE, "result": None}),
        "\udcff",
    ],
)
def test_a_lineage_that_is_torn_or_of_something_else_is_one_line_with_a_way_out(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DistillError, match=rf"{FILE} is torn or not by vgid \(.*\); restore it") as caught:
        read_finished(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("…")
    with pytest.raises(DistillError, match=f"holds no {FILE}"):
        read_finished(tmp_path)
