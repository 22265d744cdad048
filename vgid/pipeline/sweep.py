"""`vgid teacher sweep`: a grid of strengths and templates on a few subjects, judged and drawn.

One cache holds the whole grid, filled by one pass of the teacher after another, so that a rerun with more of a grid
computes only what is new. What this gives up: the model is loaded once a pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vgid.data.examples import Example
from vgid.errors import ConfigError
from vgid.pipeline.console import progress, say, table
from vgid.pipeline.recipe import Recipe
from vgid.pipeline.results import build_results, with_temporary, write_results
from vgid.pipeline.teacher import prepare_teacher, run_teacher
from vgid.stage1_teacher.diagnose import Dose, InspectReport, Row, inspect_cache
from vgid.stage1_teacher.diagnose.plan import DRAWS, diagnostic_plan, sample_subjects
from vgid.stage1_teacher.options import EngineName
from vgid.stage1_teacher.perturb import is_random
from vgid.stage1_teacher.settings import DEFAULT_PLAN, TeacherSettings

CURVES = ("leak", "truth", "refusal", "entropy", "effect", "collateral")
"""What is drawn over the strength; see docs/teacher-quality.md."""
_MEASURES = {
    "leak": ("D1", "told"),
    "truth": ("D2", "path"),
    "refusal": ("D6", "mass_low"),
    "entropy": ("D7", "entropy_low"),
    "effect": ("D11", "js_low"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Forget pictures in one view under one setting."""

    perturbation: str | None
    strength: float | None
    icu_id: str | None
    view: str
    values: dict[str, Row | None]
    """By name of `CURVES`."""
    collateral: float | None
    """Effect on retain over effect on forget, both as lower bounds."""

    def get(self, name: str) -> float | None:
        """One value."""
        if name == "collateral":
            return self.collateral
        row = self.values[name]
        return None if row is None else row.value


def run_sweep(
    recipe: Recipe,
    examples: Sequence[Example],
    out: Path,
    *,
    strengths: Sequence[float],
    templates: Sequence[str] = (),
    perturbations: Sequence[str] = (),
    subjects: int,
    engine: EngineName,
) -> tuple[InspectReport, list[Point], dict[str, Any]]:
    """Fill `out/cache` with the grid, inspect it, and write `sweep.svg`, `results.json` and `samples.parquet` to `out`.

    Args:
        recipe: Everything but the grid.
        examples: The recipe's data.
        out: Directory.
        strengths: Of every perturbation.
        templates: ICU templates; empty for the recipe's.
        perturbations: Empty for the recipe's.
        subjects: How many of forget, and as many of retain.
        engine: Engine.

    Raises:
        ConfigError: a strength or name is wrong, or the data has nothing to forget.
    """
    started = time.monotonic()
    quarantined = {each.subject for each in recipe.teacher.quarantine}
    chosen = sample_subjects((each for each in examples if each.subject_id not in quarantined), subjects)
    grid = list(
        sweep_grid(recipe.teacher, chosen, strengths=strengths, templates=templates, perturbations=perturbations)
    )
    for number, settings in enumerate(grid):
        assert settings.perturbation is not None
        noise = settings.perturbation
        say(f"sweep {number + 1}/{len(grid)}: {noise.name} {noise.strength:g}, icu {settings.icu}")
        job = prepare_teacher(recipe.model_copy(update={"teacher": settings}), chosen, engine=engine)
        run_teacher(job, out / "cache")
    with progress("inspect") as report:
        found = inspect_cache(
            out / "cache", examples=chosen, on_check=lambda done, total: report(done, total, "checks")
        )
    points = sweep_points(found.doses)
    results = build_results(
        settings={"strengths": list(strengths), "templates": list(templates), "subjects": subjects, "engine": engine},
        lineage={"cache": found.cache, "manifest": found.manifest, "model": recipe.model},
        timings={"sweep": time.monotonic() - started},
        metrics=[row for point in points for row in _metric_rows(point)],
    )
    write_results(results, list(_samples(points)), out)
    with_temporary(out / "sweep.svg", lambda path: draw_curves(points, path))
    return found, points, results


def sweep_grid(
    teacher: TeacherSettings,
    examples: Sequence[Example],
    *,
    strengths: Sequence[float],
    templates: Sequence[str],
    perturbations: Sequence[str],
) -> Iterator[TeacherSettings]:
    """The settings of each pass, with a plan that every check can read.

    Raises:
        ConfigError: a strength or name is wrong, or there is nothing to forget.
    """
    plan = diagnostic_plan(teacher.plan or DEFAULT_PLAN, examples)
    if not any(entry.split == "forget" for entry in plan):
        raise ConfigError("the recipe's plan finds nothing to forget in its data; see `vgid data check`")
    own = teacher.model_dump()
    noise = own["perturbation"] or {}
    for name in perturbations or [noise.get("name")]:
        for strength in strengths:
            for icu in templates or [own["icu"]]:
                draws = max(DRAWS, noise.get("draws", 1)) if name and is_random(name) else 1
                changed = {"perturbation": {**noise, "name": name, "strength": strength, "draws": draws}, "icu": icu}
                try:
                    yield TeacherSettings.model_validate(own | changed | {"plan": plan, "quarantine": ()})
                except ValidationError as error:
                    reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise ConfigError(f"sweep of {name} {strength:g} with icu {icu}: {reason}") from error


def sweep_points(doses: Iterable[Dose]) -> list[Point]:
    """Every variant's views, each view once for what it depends on (`base` is the same everywhere)."""
    points: dict[tuple[Any, ...], Point] = {}
    for dose in doses:
        rows = [row for row in dose.rows if row.modality == "image"]
        for view in ("base", "noise", "icu", "noise+icu"):
            forget = [row for row in rows if (row.split, row.view) == ("forget", view)]
            if not forget:
                continue
            variant = dose.variant
            perturbation, strength = (variant.perturbation, variant.strength) if "noise" in view else (None, None)
            icu_id = variant.icu_id if "icu" in view else None
            values = {name: _find(forget, *measure) for name, measure in _MEASURES.items()}
            retain = _find([row for row in rows if (row.split, row.view) == ("retain", view)], "D11", "js_low")
            effect = values["effect"]
            points[perturbation, strength, icu_id, view] = Point(
                perturbation=perturbation,
                strength=strength,
                icu_id=icu_id,
                view=view,
                values=values,
                collateral=retain.value / effect.value if retain and effect and effect.value > 0 else None,
            )
    return sorted(points.values(), key=_order)


def sweep_table(points: Sequence[Point]) -> str:
    """The points for people."""
    lines = [
        [
            point.view,
            "-" if point.perturbation is None else f"{point.perturbation} {point.strength:g}",
            point.icu_id or "-",
            *(point.get(name) for name in CURVES),
        ]
        for point in points
    ]
    return table(("view", "noise", "icu", *CURVES), lines)


def draw_curves(points: Sequence[Point], path: Path) -> None:
    """The curves as SVG: a row of panels for each perturbation, a line for each view and template."""
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point.perturbation for point in points if point.perturbation is not None))
    with matplotlib.rc_context({"svg.hashsalt": "vgid", "font.size": 8}):
        figure = Figure(figsize=(2.6 * len(CURVES), 2.6 * len(names)), layout="constrained")
        axes = figure.subplots(len(names), len(CURVES), squeeze=False)
        for row, name in zip(axes, names, strict=True):
            strengths = sorted({point.strength or 0 for point in points if point.perturbation == name})
            for panel, curve in zip(row, CURVES, strict=True):
                for number, ((view, icu_id), line) in enumerate(_lines(points, name).items()):
                    known = [(point.strength, point.get(curve)) for point in line if point.get(curve) is not None]
                    if not known:
                        continue
                    style = {"label": f"{view} {icu_id}" if icu_id else view, "color": f"C{number}"}
                    if "noise" in view:
                        panel.plot(*zip(*known, strict=True), marker="o", markersize=3, **style)
                    else:  # no noise in it: the same at every strength
                        panel.plot(strengths, [known[0][1]] * len(strengths), linestyle="--", **style)
                panel.set_title(curve)
                panel.set_xlabel(f"strength of {name}")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _lines(points: Sequence[Point], perturbation: str) -> dict[tuple[str, str | None], list[Point]]:
    lines: dict[tuple[str, str | None], list[Point]] = {}
    for point in points:
        if point.perturbation in (None, perturbation):
            lines.setdefault((point.view, point.icu_id), []).append(point)
    return lines


def _find(rows: Sequence[Row], check: str, measure: str) -> Row | None:
    """The measure's row; of several kinds of responses the generated ones'."""
    fitting = [row for row in rows if (row.check, row.measure) == (check, measure)]
    return min(fitting, key=lambda row: row.response_kind or "", default=None)


def _order(point: Point) -> tuple[Any, ...]:
    views = ("base", "icu", "noise", "noise+icu")
    return views.index(point.view), point.icu_id or "", point.perturbation or "", point.strength or 0


def _metric_rows(point: Point) -> Iterator[dict[str, Any]]:
    noise = f"{point.perturbation} {point.strength:g}" if point.perturbation else "no noise"
    place = {
        "model": "teacher",
        "split": "forget",
        "modality": "image",
        "protocol": f"view {point.view}, {noise}, icu {point.icu_id or 'none'}",
    }
    for name, row in point.values.items():
        if row is not None:
            yield {"metric": name, **place, "value": row.value, "n": row.n, "low": row.low, "high": row.high}
    if point.collateral is not None:
        effect = point.values["effect"]
        n = effect.n if effect else 0
        yield {"metric": "collateral", **place, "value": point.collateral, "n": n, "low": None, "high": None}


def _samples(points: Iterable[Point]) -> Iterator[dict[str, Any]]:
    """A line for each subject of each point."""
    for point in points:
        for name, row in point.values.items():
            for subject_id, (value, n) in row.by_subject.items() if row else ():
                yield {
                    "subject_id": subject_id,
                    "metric": name,
                    "view": point.view,
                    "perturbation": point.perturbation,
                    "strength": point.strength,
                    "icu_id": point.icu_id,
                    "value": value,
                    "n": n,
                }
