"""What `vgid teacher inspect` does and says, between the command line and `vgid.stage1_teacher.diagnose`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from vgid.cache.reader import Cache, open_cache
from vgid.cache.schema import ids_sha256
from vgid.data.examples import Example
from vgid.errors import Stopped
from vgid.pipeline.console import progress, table
from vgid.pipeline.recipe import Recipe, load_examples, load_recipe
from vgid.pipeline.results import build_results, write_results
from vgid.stage1_teacher.diagnose import (
    GATES,
    Dose,
    Gate,
    InspectReport,
    Interventions,
    Reading,
    Taught,
    inspect_cache,
)
from vgid.stage1_teacher.diagnose.gates import chosen_gates
from vgid.stage1_teacher.icu import IcuSettings, icu_id_of
from vgid.stage1_teacher.settings import DEFAULT_PLAN

_BY_VIEW = {
    "told": ("D1", "told"),
    "truth": ("D2", "path"),
    "first fact, forced": ("D2", "first_fact"),
    "later facts, forced": ("D2", "later_facts"),
    "refusal": ("D6", "mass_low"),
    "entropy": ("D7", "entropy_low"),
}


def run_inspect(
    cache: str,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    perturbation: str | None = None,
    strength: float | None = None,
    icu_id: str | None = None,
    retain_only: str | None = None,
    student: str | None = None,
    out: Path | None = None,
) -> tuple[InspectReport, dict[str, Any]]:
    """Inspect a cache; with `out`, write `results.json` and `samples.parquet` there.

    Args:
        cache: Path or URL.
        recipe: Its data gives the facts, its `distill.targets` which rows train, its `teacher` the variant.
        overrides: `a.b=c` settings of the recipe.
        perturbation: See `inspect_cache`, also the following.
        strength: Of the perturbation.
        icu_id: Template.
        retain_only: Cache of a model that never saw the forget set.
        student: Cache of a student.
        out: Directory of the result files.

    Returns:
        The report, and the record of `results.json`.

    Raises:
        CacheError: no cache there, or it cannot be inspected.
        ConfigError: the recipe or an option is wrong.
    """
    opened = open_cache(cache)  # before the data is read
    given = None if recipe is None else load_recipe(recipe, overrides=overrides)
    return inspect_opened(
        opened,
        recipe=None if given is None else given[0],
        examples=None if given is None else load_examples(given[0].data, folder=given[1]),
        out=out,
        perturbation=perturbation,
        strength=strength,
        icu_id=icu_id,
        retain_only=retain_only,
        student=student,
    )


def inspect_opened(
    cache: Cache,
    *,
    recipe: Recipe | None,
    examples: Sequence[Example] | None,
    out: Path | None,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> tuple[InspectReport, dict[str, Any]]:
    """`run_inspect` with recipe and data at hand; `options` are those of `inspect_cache`.

    Raises:
        Stopped: `should_stop` said so between two checks; nothing was written.
    """
    started = time.monotonic()
    with progress("inspect") as report:

        def on_check(done: int, total: int) -> None:
            report(done, total, "checks")
            if should_stop():
                raise Stopped("stopped while the cache was inspected; rerun to continue")

        found = inspect_cache(
            cache.store,
            examples=examples,
            taught=None if recipe is None else taught_rows(recipe),
            prefer=None if recipe is None else interventions(recipe),
            gates=None if recipe is None else recipe.gates.thresholds,
            on_check=on_check,
            **options,
        )
    results = inspect_results(found, seconds=time.monotonic() - started)
    if recipe is not None and examples is not None:
        made_with, made_from = what_readings_depend_on(cache, recipe, examples)
        results["settings"] |= made_with
        results["lineage"] |= made_from
    if out is not None:
        write_results(results, list(_samples(found)), out)
    return found, results


def what_readings_depend_on(
    cache: Cache, recipe: Recipe, examples: Sequence[Example]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and lineage that the results of an inspection must have to be those of this cache, recipe and data."""
    gates = chosen_gates(recipe.gates.thresholds)
    settings = {
        "taught": [asdict(each) for each in taught_rows(recipe)],
        "interventions": interventions(recipe)._asdict(),
        "gates": {name: gates[name].describe() if name in gates else None for name in GATES},
    }
    data = ids_sha256(example.content_sha256() for example in examples)
    return settings, {"manifest_sha256": cache.manifest.sha256, "data_sha256": data}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmetGate:
    """A gate that keeps a teacher from being trained on."""

    name: str
    value: str
    """With `bound`, as people read it."""
    bound: str

    def describe(self) -> str:
        """In a line."""
        return f"{self.name} is {self.value}, must be {self.bound}"


def unmet_gates(results: Mapping[str, Any], *, required: Sequence[str] | None) -> list[UnmetGate]:
    """Gates that are not met, as the results of an inspection say.

    Args:
        results: Of an inspection.
        required: See `GateSettings`.
    """
    gated = [reading for check in results["checks"] for reading in check["readings"] if reading["gate"] is not None]
    if required is None:
        unmet = [reading for reading in gated if reading["verdict"] == "fail"]
    else:
        unmet = [reading for reading in gated if reading["name"] in required and reading["verdict"] != "pass"]
    return [UnmetGate(name=each["name"], value=_value(each), bound=Gate(**each["gate"]).describe()) for each in unmet]


def count_verdicts(results: Mapping[str, Any]) -> dict[str, int]:
    """How many gates passed, failed, and could not be judged."""
    verdicts = [each["verdict"] for check in results["checks"] for each in check["readings"] if each["gate"]]
    return {verdict: verdicts.count(verdict) for verdict in ("pass", "unknown", "fail")}


def _value(reading: Mapping[str, Any]) -> str:
    low, high = reading["value_low"], reading["value_high"]
    if low is None or high is None:
        return f"unknown ({reading['reason']})"
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def taught_rows(recipe: Recipe) -> tuple[Taught, ...]:
    """Which rows a recipe trains on: those that `distill.targets` selects of what `teacher.plan` makes."""
    pairs = [
        (each, entry.modality or each.modality)
        for each in recipe.distill.targets
        for entry in recipe.teacher.plan or DEFAULT_PLAN
        if (each.split, each.view) == (entry.split, entry.view)
        and each.response_kind in entry.response_kinds
        and (each.modality is None or entry.modality in (None, each.modality))
    ]
    rows = [
        Taught(split=each.split, modality=modality, view=each.view, response_kind=each.response_kind)
        for each, modality in pairs
    ]
    return tuple(dict.fromkeys(rows))


def interventions(recipe: Recipe) -> Interventions:
    """The recipe's own setting, as its rows have it."""
    noise, icu, seed = recipe.teacher.perturbation, recipe.teacher.icu, recipe.teacher.seed
    return Interventions(
        perturbation=None if noise is None else noise.label,
        strength=None if noise is None else noise.strength,
        noise_seed=None if noise is None else seed,
        icu_id=None if icu is None else icu_id_of(icu),
        otherwise=icu.otherwise if isinstance(icu, IcuSettings) else None,
    )


def inspect_results(report: InspectReport, *, seconds: float) -> dict[str, Any]:
    """The record of `results.json`: readings and their by-view measures as metric rows, verdicts under `checks`."""
    return build_results(
        settings={"variant": asdict(report.variant), "taught": [asdict(each) for each in report.taught]},
        lineage={"cache": report.cache, "manifest": report.manifest, "rows": report.rows_used},
        timings={"inspect": seconds},
        metrics=[*(row for reading in report.readings for row in _reading_rows(reading)), *_measure_rows(report)],
    ) | {
        "checks": [
            {**asdict(check), "verdict": check.verdict, "readings": [asdict(each) for each in check.readings]}
            for check in report.checks
        ],
        "doses": [
            {
                "variant": asdict(dose.variant),
                "forget_rows": dose.forget_rows,
                "readings": [*map(asdict, dose.readings)],
            }
            for dose in report.doses
        ],
        "failing_subjects": [asdict(each) for each in report.failing_subjects],
        "quarantine": quarantine(report),
        "notes": list(report.notes),
    }


def quarantine(report: InspectReport) -> list[dict[str, str]]:
    """Entries of `teacher.quarantine` for the failing subjects, worst first."""
    reasons: dict[str, list[str]] = {}
    for each in report.failing_subjects:
        reasons.setdefault(each.subject_id, []).append(
            f"{each.reading} is {each.value:.3g}, gate {each.gate.describe()}"
        )
    return [{"subject": subject, "reason": "; ".join(said)} for subject, said in reasons.items()]


def quarantine_yaml(report: InspectReport) -> str:
    """The same as YAML, to go under `teacher` in a recipe."""
    return yaml.safe_dump({"quarantine": quarantine(report)}, sort_keys=False, allow_unicode=True, width=1000)


def report_text(report: InspectReport) -> str:
    """The report for people: readings with verdicts, views side by side, variants, failing subjects, unknowns."""
    taught = ", ".join(
        " ".join(filter(None, (each.split, each.modality, each.view, each.response_kind))) for each in report.taught
    )
    blocks = [
        f"{report.cache}: {report.variant.describe()} ({report.variant.engine_id}), {report.rows_used:,} rows\n"
        f"taken to train: {taught}",
        table(
            ("check", "reading", "value", "95% by subject", "n", "gate", "verdict"),
            [_line(check.title, reading) for check in report.checks for reading in check.readings],
        ),
        _by_view(report),
    ]
    if len(report.doses) > 1:
        blocks.append(dose_table(report.doses))
    if report.failing_subjects:
        blocks.append(_subjects(report))
    blocks.append(_unknown(report))
    blocks.append("\n".join([*report.notes, _verdicts(report)]))
    return "\n\n".join(filter(None, blocks))


def dose_table(doses: Iterable[Dose]) -> str:
    """D16: one line a variant."""
    lines = [[dose.variant.describe(), dose.forget_rows, *map(shown, dose.readings)] for dose in doses]
    names = [reading.name for dose in doses for reading in dose.readings]
    return table(("variant (D16)", "forget rows", *dict.fromkeys(names)), lines)


def shown(reading: Reading) -> str:
    """The value, or its bounds where they differ in what is printed."""
    if reading.value_low is None or reading.value_high is None:
        return "-"
    low, high = f"{reading.value_low:.3f}", f"{reading.value_high:.3f}"
    return low if low == high else f"{low} to {high}"


def _line(title: str, reading: Reading) -> list[Any]:
    interval = "" if reading.low is None or reading.high is None else f"[{reading.low:.3f}, {reading.high:.3f}]"
    gate = reading.gate.describe() if reading.gate else ""
    return [title, reading.name, shown(reading), interval, reading.n, gate, reading.verdict]


def _by_view(report: InspectReport) -> str:
    """Forget rows: what each view tells, the teacher's views and the others."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in report.rows:
        for name, (check, measure) in _BY_VIEW.items():
            fits = row.split == "forget" and (row.check, row.measure) == (check, measure)
            if fits and (name != "entropy" or row.response_kind == "generated"):
                found.setdefault((row.modality, row.view), {})[name] = row.value
    order = ("base", "noise", "icu", "noise+icu")
    places = sorted(found, key=lambda place: (place[0], order.index(place[1])))
    lines = [[modality, view, *(found[modality, view].get(name) for name in _BY_VIEW)] for modality, view in places]
    return table(("forget rows of", "view", *_BY_VIEW), lines) if lines else ""


def _subjects(report: InspectReport) -> str:
    lines = [[each.subject_id, each.reading, each.value, each.gate.describe()] for each in report.failing_subjects]
    count = len({each.subject_id for each in report.failing_subjects})
    failing = table(("failing subject", "reading", "value", "gate"), lines)
    return (
        f"{failing}\n\n{count:,} of {report.num_subjects:,} forget subjects fail by themselves; to leave them out of "
        f"the plan, under `teacher`:\n\n{quarantine_yaml(report).rstrip()}"
    )


def _unknown(report: InspectReport) -> str:
    return "\n".join(f"{each.name} unknown: {each.reason}" for each in report.readings if each.verdict == "unknown")


def _verdicts(report: InspectReport) -> str:
    gated = [reading for reading in report.readings if reading.gate is not None]
    counts = {verdict: sum(each.verdict == verdict for each in gated) for verdict in ("pass", "fail", "unknown")}
    failed = ", ".join(reading.name for reading in report.failed)
    return f"gates: {counts['pass']} passed, {counts['unknown']} unknown, {counts['fail']} failed" + (
        f" ({failed})" if failed else ""
    )


def _reading_rows(reading: Reading) -> list[dict[str, Any]]:
    if reading.value_low is None or reading.value_high is None:
        return []
    place = {"model": "teacher", "split": reading.split, "modality": reading.modality, "protocol": "what trains"}
    interval = {"n": reading.n, "low": reading.low, "high": reading.high}
    if reading.value_low == reading.value_high:
        return [{"metric": reading.name, **place, "value": reading.value_low, **interval}]
    bounds = {"lower_bound": reading.value_low, "upper_bound": reading.value_high}
    return [{"metric": f"{reading.name}_{side}", **place, "value": value, **interval} for side, value in bounds.items()]


def _measure_rows(report: InspectReport) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for row in report.rows:
        place = {
            "metric": f"{row.check}.{row.measure}",
            "model": "teacher",
            "split": row.split,
            "modality": row.modality,
            "protocol": f"view {row.view}, {row.response_kind or 'any response'}",
        }
        rows.append({**place, "value": row.value, "n": row.n, "low": row.low, "high": row.high})
        if (row.check, row.measure) in (("D4", "rank"), ("D7", "entropy_low"), ("D7", "entropy_high")):
            for name, value in {"p10": row.p10, "median": row.median, "p90": row.p90}.items():
                quantile = {"metric": f"{place['metric']}_{name}", "value": value}
                rows.append({**place, **quantile, "n": row.n, "low": None, "high": None})
    return rows


def _samples(report: InspectReport) -> Iterable[Mapping[str, Any]]:
    """A line for each subject of each measure, for `samples.parquet`."""
    for row in report.rows:
        for subject_id, (value, n) in row.by_subject.items():
            yield {
                "subject_id": subject_id,
                "metric": f"{row.check}.{row.measure}",
                "split": row.split,
                "modality": row.modality,
                "view": row.view,
                "response_kind": row.response_kind,
                "value": value,
                "n": n,
            }
