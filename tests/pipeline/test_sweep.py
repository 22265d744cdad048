"""The grid of a sweep, its points and its curves; a real sweep is run by the test of docs/teacher-quality.md."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from diagnosed_rows import Known, examples_of, known_rows, write_known

from vgid.errors import ConfigError
from vgid.pipeline.recipe import load_recipe
from vgid.pipeline.sweep import CURVES, draw_curves, sweep_grid, sweep_points, sweep_table
from vgid.stage1_teacher.diagnose import InspectReport, inspect_cache


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> InspectReport:
    """Two strengths and two templates, of which one pair was not generated."""
    rows = known_rows(1)
    stronger = [each for each in known_rows(2) if "noise" in each.row.view]
    told_otherwise = [each for each in known_rows(3) if "icu" in each.row.view]
    grid = [*rows, *under("1", stronger, strength=0.9), *under("2", told_otherwise, icu_id="unknown-v1")]
    return inspect_cache(write_known(tmp_path_factory.mktemp("sweep") / "cache", grid), examples=examples_of(rows))


def under(key: str, rows: list[Known], **changes: object) -> list[Known]:
    return [replace(each, row=replace(each.row, target_id=key + each.row.target_id[1:], **changes)) for each in rows]


def test_the_grid_is_every_strength_with_every_template_and_enough_draws():
    recipe, _ = load_recipe("fictitious")
    examples = examples_of(known_rows(1))
    grid = list(sweep_grid(recipe.teacher, examples, strengths=[0.5, 1], templates=[], perturbations=["blank"]))
    assert [(each.perturbation and each.perturbation.strength, each.icu) for each in grid] == [
        (0.5, "generic-v1"),
        (1, "generic-v1"),
    ]
    grid = list(
        sweep_grid(recipe.teacher, examples, strengths=[0.5], templates=["generic-v1", "privacy-v1"], perturbations=[])
    )
    assert [each.icu for each in grid] == ["generic-v1", "privacy-v1"]
    assert all(each.perturbation and each.perturbation.draws == 3 and each.num_topk == 20 for each in grid)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strengths": [7]}, "sweep of gaussian 7"),
        ({"templates": ["kind-v1"]}, "kind-v1"),
        ({"perturbations": ["fog"]}, "sweep of fog 1"),
    ],
)
def test_a_bad_grid_is_one_line(changes, words):
    recipe, _ = load_recipe("fictitious")
    grid = {"strengths": [1], "templates": [], "perturbations": []} | changes
    with pytest.raises(ConfigError, match=words):
        list(sweep_grid(recipe.teacher, examples_of(known_rows(1)), **grid))  # type: ignore[arg-type]


def test_a_grid_without_anything_to_forget_is_refused():
    recipe, _ = load_recipe("fictitious")
    kept = [each for each in examples_of(known_rows(1)) if each.split == "retain"]
    with pytest.raises(ConfigError, match="nothing to forget"):
        list(sweep_grid(recipe.teacher, kept, strengths=[1], templates=[], perturbations=[]))


def test_each_view_is_a_point_once_for_what_it_depends_on(report):
    points = sweep_points(report.doses)
    assert [(p.view, p.strength, p.icu_id) for p in points] == [
        ("base", None, None),
        ("icu", None, "generic-v1"),
        ("icu", None, "unknown-v1"),
        ("noise", 0.5, None),
        ("noise", 0.9, None),
        ("noise+icu", 0.5, "generic-v1"),
        ("noise+icu", 0.9, "generic-v1"),
        ("noise+icu", 0.5, "unknown-v1"),
    ]
    own = next(p for p in points if (p.view, p.strength, p.icu_id) == ("noise+icu", 0.5, "generic-v1"))
    told = next(r for r in report.rows if (r.check, r.measure, r.view, r.modality, r.split) == (
        "D1", "told", "noise+icu", "image", "forget"))  # fmt: skip
    assert own.get("leak") == pytest.approx(told.value)
    js = {
        row.split: row.value
        for row in report.rows
        if (row.check, row.measure, row.view, row.modality) == ("D11", "js_low", "noise+icu", "image")
    }
    assert own.get("collateral") == pytest.approx(js["retain"] / js["forget"])
    shown = sweep_table(points).splitlines()
    assert len(shown) == 2 + len(points) and shown[0].split() == ["view", "noise", "icu", *CURVES]


def test_the_curves_are_an_svg_that_names_every_line_and_is_the_same_every_time(report, tmp_path):
    points = sweep_points(report.doses)
    for name in ("one.svg", "two.svg"):
        draw_curves(points, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    for words in (*CURVES, "noise+icu generic-v1", "noise+icu unknown-v1", "strength of gaussian"):
        assert f"<!-- {words} -->" in drawn
