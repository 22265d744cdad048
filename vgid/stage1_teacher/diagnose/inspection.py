"""Run the checks over a cache: SQL gives a sum and a count a subject, the rest is arithmetic on those.

The tables that all checks share are made once a variant (`tables.sql`); a check's own file gives one row an observation
and one column a measure. What this gives up: the tables are held in memory, some 100 bytes a response token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vgid.cache.reader import Cache, open_cache
from vgid.cache.sql import connect
from vgid.cache.store import Store
from vgid.data.bootstrap import resampled_means
from vgid.data.examples import Example
from vgid.data.judge import leaks, refuses
from vgid.errors import CacheError, ConfigError
from vgid.stage1_teacher.diagnose.checks import (
    CHECKS,
    DOSE_READINGS,
    NO_FACTS,
    SUBJECT_READINGS,
    CheckSpec,
    Means,
    Part,
    ReadingSpec,
)
from vgid.stage1_teacher.diagnose.gates import Gate, chosen_gates
from vgid.stage1_teacher.diagnose.report import Check, Dose, InspectReport, Reading, Row, SubjectReading, Verdict
from vgid.stage1_teacher.diagnose.variants import (
    Interventions,
    Taught,
    Variant,
    choose,
    find_variants,
    taught_by_default,
)
from vgid.stage1_teacher.perturb import is_random

if TYPE_CHECKING:
    import duckdb

_PLACE = ("split", "modality", "view", "response_kind")
_MEASURES = f"""
WITH observed AS (
    UNPIVOT (SELECT {", ".join(_PLACE)}, subject_id, COLUMNS(* EXCLUDE ({", ".join(_PLACE)}, subject_id))::DOUBLE
        FROM ({{check}}))
    ON COLUMNS(* EXCLUDE ({", ".join(_PLACE)}, subject_id)) INTO NAME measure VALUE value
)
SELECT
    measure, {", ".join(_PLACE)}, subject_id, grouping(subject_id) = 1 AS whole, sum(value) AS total, count(*) AS count,
    quantile_cont(value, [0.1, 0.5, 0.9]) AS quantiles
FROM observed
GROUP BY GROUPING SETS ((measure, {", ".join(_PLACE)}, subject_id), (measure, {", ".join(_PLACE)}))
ORDER BY ALL
"""
_OTHERS = pa.schema(
    [
        *((name, pa.string()) for name in ("place", "target_id", "example_id", "view", "response_kind")),
        ("token_ids", pa.list_(pa.int32())),
        ("tail_logprob", pa.list_(pa.float32())),
        ("topk_ids", pa.list_(pa.list_(pa.int32()))),
        ("topk_logprobs", pa.list_(pa.list_(pa.float32()))),
    ]
)


def inspect_cache(
    cache: Path | str | Store,
    *,
    examples: Iterable[Example] | None = None,
    taught: Sequence[Taught] | None = None,
    perturbation: str | None = None,
    strength: float | None = None,
    icu_id: str | None = None,
    prefer: Interventions | None = None,
    retain_only: Path | str | Store | None = None,
    student: Path | str | Store | None = None,
    gates: Mapping[str, float | None] | None = None,
    on_check: Callable[[int, int], None] = lambda done, total: None,
) -> InspectReport:
    """Run D1 to D18 over one variant of a cache, and a few of them over every variant (D16).

    Args:
        cache: Path or URL.
        examples: The data, for the facts that answers are judged by; without it those readings are unknown.
        taught: Which rows train; None for `taught_by_default`.
        perturbation: Inspect the variant with this perturbation.
        strength: And this strength.
        icu_id: And this template.
        prefer: Of several variants that fit, take this one if the cache has it; else the one with most forget rows.
        retain_only: Cache of a model that never saw the forget set: its forget rows of view `base`.
        student: Cache of a student: the same.
        gates: Other thresholds by reading; None takes a gate away.
        on_check: Called with (done, total).

    Raises:
        CacheError: no cache there, it is damaged, it has no rows, or another cache's tokenizer differs.
        ConfigError: no such variant, or no such gate.
    """
    opened, thresholds = open_cache(cache), chosen_gates(gates or {})
    if not opened.manifest.parts:
        raise CacheError(f"cache {opened.location}: it holds no rows; run `vgid teacher generate`")
    with closing(connect(cache)) as connection:
        others = [_other(opened, "retain_only", retain_only), _other(opened, "student", student)]
        connection.register("others", pa.concat_tables(others))
        connection.execute(_text("macros.sql"))
        found = connection.sql(_text("d16_variants.sql")).to_arrow_table().to_pylist()
        variants = find_variants(found)
        chosen = choose(variants, perturbation=perturbation, strength=strength, icu_id=icu_id, prefer=prefer)
        judged, judge_notes = _judge(connection, examples)
        connection.register("judged", judged)
        total = len(CHECKS) + len(variants) - 1
        doses = []
        for variant, forget_rows in variants:
            if variant != replace(chosen, otherwise=None):
                run = _Run.of(connection, opened, variant, taught, only=DOSE_READINGS)
                doses.append(_dose(run, forget_rows, thresholds))
                on_check(len(doses), total)
        run = _Run.of(
            connection, opened, chosen, taught, on_check=lambda done: on_check(len(variants) - 1 + done, total)
        )
        doses.append(_dose(run, dict(variants)[replace(chosen, otherwise=None)], thresholds))
        rows_used, left_out = connection.sql("SELECT count(*), sum(twins) FROM picked").fetchall()[0]
    readings = run.readings(thresholds)
    notes = list(judge_notes)
    if left_out:
        notes.append(f"{left_out:,} rows stand for the same question, view and draw as another; left out")
    return InspectReport(
        cache=opened.location,
        manifest=opened.manifest.number,
        variant=chosen,
        taught=run.taught,
        rows_used=rows_used,
        notes=tuple(notes),
        checks=tuple(
            Check(
                name=spec.name,
                title=spec.title,
                definition=spec.definition,
                readings=tuple(readings[reading.name] for reading in spec.readings),
            )
            for spec in CHECKS
        ),
        rows=tuple(run.rows()),
        doses=tuple(sorted(doses, key=lambda dose: _dose_order(dose.variant))),
        failing_subjects=tuple(run.failing_subjects(thresholds)),
        num_subjects=run.num_subjects(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """One measure in one place: sums and counts by subject."""

    check: str
    measure: str
    place: Mapping[str, str | None]
    totals: Mapping[str, float]
    counts: Mapping[str, int]
    quantiles: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What SQL measured in one variant."""

    variant: Variant
    taught: tuple[Taught, ...]
    measured: Mapping[str, Sequence[_Measured]]
    """By check."""
    kinds: Sequence[Mapping[str, str | None]]
    """Places that have rows."""

    @classmethod
    def of(
        cls,
        connection: duckdb.DuckDBPyConnection,
        opened: Cache,
        variant: Variant,
        taught: Sequence[Taught] | None,
        *,
        only: Sequence[str] | None = None,
        on_check: Callable[[int], None] = lambda done: None,
    ) -> _Run:
        connection.register("variant", _variant_table(variant, opened))
        connection.execute(_text("tables.sql"))
        kinds = connection.sql(f"SELECT DISTINCT {', '.join(_PLACE)} FROM picked").fetchall()
        measured: dict[str, list[_Measured]] = {}
        for done, spec in enumerate(CHECKS):
            wanted = only is None or any(reading.name in only for reading in spec.readings)
            measured[spec.name] = _measure(connection, spec) if wanted and spec.file else []
            on_check(done + 1)
        return cls(
            variant=variant,
            taught=taught_by_default(variant, kinds) if taught is None else tuple(taught),
            measured=measured,
            kinds=[dict(zip(_PLACE, kind, strict=True)) for kind in kinds],
        )

    def rows(self) -> Iterable[Row]:
        for check, measures in self.measured.items():
            for each in measures:
                low, high = _interval([[each]], lambda value: (value, value))
                n = sum(each.counts.values())
                yield Row(
                    check=check,
                    measure=each.measure,
                    split=str(each.place["split"]),
                    modality=str(each.place["modality"]),
                    view=str(each.place["view"]),
                    response_kind=each.place["response_kind"],
                    value=sum(each.totals.values()) / n,
                    n=n,
                    low=low,
                    high=high,
                    p10=each.quantiles[0],
                    median=each.quantiles[1],
                    p90=each.quantiles[2],
                    by_subject={name: (each.totals[name] / n, n) for name, n in each.counts.items()},
                )

    def readings(self, gates: Mapping[str, Gate]) -> dict[str, Reading]:
        return {
            reading.name: self._reading(spec, reading, gates.get(reading.name))
            for spec in CHECKS
            for reading in spec.readings
        }

    def failing_subjects(self, gates: Mapping[str, Gate]) -> list[SubjectReading]:
        """Subjects past a gate by themselves, worst first."""
        failing: list[SubjectReading] = []
        for spec in CHECKS:
            for reading in spec.readings:
                gate = gates.get(reading.name)
                if reading.name not in SUBJECT_READINGS or gate is None:
                    continue
                parts = [self._find(spec.name, part) for part in reading.parts]
                for subject in sorted({name for part in parts for each in part for name in each.counts}):
                    low, high = reading.combine(*(_mean(part, subject) for part in parts))
                    if gate.verdict(float(low), float(high)) == "fail":
                        failing.append(
                            SubjectReading(subject_id=subject, reading=reading.name, value=float(low), gate=gate)
                        )
        worst = {
            subject: max(each.value for each in failing if each.subject_id == subject) for subject in _names(failing)
        }
        return sorted(failing, key=lambda each: (-worst[each.subject_id], each.subject_id, each.reading))

    def num_subjects(self) -> int:
        """Subjects of the forget rows."""
        return len(
            {
                name
                for measures in self.measured.values()
                for each in measures
                if each.place["split"] == "forget"
                for name in each.counts
            }
        )

    def _reading(self, spec: CheckSpec, reading: ReadingSpec, gate: Gate | None) -> Reading:
        parts = [self._find(spec.name, part) for part in reading.parts]
        values = reading.combine(*(_mean(part) for part in parts))
        known = all(parts) and all(np.isfinite(values))
        low, high = _interval(parts, reading.combine) if known else (None, None)
        verdict, reason = self._verdict(reading, gate, known, values)
        return Reading(
            name=reading.name,
            definition=reading.definition,
            value_low=float(values[0]) if known else None,
            value_high=float(values[1]) if known else None,
            low=low,
            high=high,
            n=min((sum(n for each in part for n in each.counts.values()) for part in parts), default=0),
            split=reading.parts[0].split,
            modality=reading.parts[0].modality,
            gate=gate,
            verdict=verdict,
            reason=reason,
        )

    def _verdict(
        self, reading: ReadingSpec, gate: Gate | None, known: bool, values: tuple[Means, Means]
    ) -> tuple[Verdict, str | None]:
        if known and gate is None:
            return "info", None
        if known and gate is not None:
            verdict = gate.verdict(float(values[0]), float(values[1]))
            return verdict, "the stored candidates leave both open; raise num_topk" if verdict == "unknown" else None
        trains = {each.response_kind for each in self.taught if each.split == "forget"}
        if reading.name == "D3.trained" and trains == {"generated"}:
            return "pass", reading.missing
        if reading.name.startswith("D9") and "noise" not in self._view("forget", "image"):
            return "info", "no noise trains, so there are no draws"
        if reading.name.startswith("D9") and not is_random((self.variant.perturbation or "").split("@")[0]):
            return "info", "the perturbation is the same in every draw"
        if (reading.name, self.variant.view) in (("D10.noise", "icu"), ("D10.icu", "noise")):
            return "info", "the variant has no such intervention"
        part = reading.parts[0]
        if part.measure in ("told", "told_other") and any(self._is_at(part, kind) for kind in self.kinds):
            return "unknown", NO_FACTS
        view = self._view("forget", part.modality or "image")
        return "unknown", reading.missing.replace("{view}", view)

    def _view(self, split: str, modality: str) -> str:
        views = [each.view for each in self.taught if each.split == split and each.modality in (None, modality)]
        return views[0] if views else self.variant.view

    def _find(self, check: str, part: Part) -> list[_Measured]:
        return [each for each in self.measured[check] if each.measure == part.measure and self._is_at(part, each.place)]

    def _is_at(self, part: Part, place: Mapping[str, str | None]) -> bool:
        return place["split"] == part.split and part.modality in (None, place["modality"]) and self._fits(part, place)

    def _fits(self, part: Part, place: Mapping[str, str | None]) -> bool:
        if part.view == "forget view":
            return place["view"] == self._view("forget", "image")
        if part.view != "taught":
            return place["view"] == part.view and part.kind in (None, place["response_kind"])
        trains = [
            each
            for each in self.taught
            if (each.split, each.view) == (place["split"], place["view"]) and each.modality in (None, place["modality"])
        ]
        if part.kind == "taught":
            return any(each.response_kind == place["response_kind"] for each in trains)
        return bool(trains) and part.kind in (None, place["response_kind"])


def _measure(connection: duckdb.DuckDBPyConnection, spec: CheckSpec) -> list[_Measured]:
    assert spec.file is not None
    rows = connection.sql(_MEASURES.format(check=_text(spec.file))).to_arrow_table().to_pylist()
    places: dict[tuple[str | None, ...], list[dict[str, Any]]] = {}
    for row in rows:
        places.setdefault((row["measure"], *(row[name] for name in _PLACE)), []).append(row)
    return [
        _Measured(
            check=spec.name,
            measure=str(key[0]),
            place=dict(zip(_PLACE, key[1:], strict=True)),
            totals={row["subject_id"]: row["total"] for row in members if not row["whole"]},
            counts={row["subject_id"]: row["count"] for row in members if not row["whole"]},
            quantiles=next(tuple(row["quantiles"]) for row in members if row["whole"]),
        )
        for key, members in places.items()
    ]


def _mean(part: Sequence[_Measured], subject: str | None = None) -> Means:
    """Over all places of a part; NaN where there is nothing."""
    totals = [total for each in part for name, total in each.totals.items() if subject in (None, name)]
    counts = [count for each in part for name, count in each.counts.items() if subject in (None, name)]
    return np.float64(sum(totals) / sum(counts) if counts else np.nan)


def _interval(
    parts: Sequence[Sequence[_Measured]], combine: Callable[..., tuple[Means, Means]]
) -> tuple[float, float] | tuple[None, None]:
    """95% bootstrap interval: parts of one split share their draws of subjects, splits are drawn apart."""
    drawn: dict[int, np.ndarray] = {}
    splits = sorted({str(each.place["split"]) for part in parts for each in part})
    for number, split in enumerate(splits):
        members = [index for index, part in enumerate(parts) if part[0].place["split"] == split]
        subjects = sorted({name for index in members for each in parts[index] for name in each.counts})
        if len(subjects) < 2:
            return None, None
        totals = [[sum(each.totals.get(s, 0) for each in parts[index]) for index in members] for s in subjects]
        counts = [[sum(each.counts.get(s, 0) for each in parts[index]) for index in members] for s in subjects]
        means = resampled_means(np.array(totals, np.float64), np.array(counts, np.float64), seed=number)
        drawn |= {index: means[:, column] for column, index in enumerate(members)}
    bounds = combine(*(drawn[index] for index in range(len(parts))))
    lower, upper = (np.asarray(each)[np.isfinite(each)] for each in bounds)
    if not (len(lower) and len(upper)):
        return None, None
    return float(np.quantile(lower, 0.025)), float(np.quantile(upper, 0.975))


def _judge(connection: duckdb.DuckDBPyConnection, examples: Iterable[Example] | None) -> tuple[pa.Table, list[str]]:
    """A row for each generated answer of the cache: whether it refuses, tells its own facts, tells another's."""
    answers = connection.sql(
        "SELECT target_id, example_id, subject_id, response_text FROM targets WHERE response_kind = 'generated'"
    ).fetchall()
    by_id = {example.example_id: example for example in examples or ()}
    owners: dict[str, set[str]] = {}
    for example in by_id.values():
        for fact in example.facts:
            owners.setdefault(fact, set()).add(example.subject_id)
    told: dict[str, set[str]] = {}
    columns: dict[str, list[Any]] = {"target_id": [], "refuses": [], "leaks": [], "leaks_other": []}
    for target_id, example_id, subject_id, text in answers:
        example = by_id.get(example_id)
        facts = example.facts if example and example.task != "classification" else ()
        if text not in told:
            told[text] = {owner for fact, names in owners.items() if leaks(text, [fact]) for owner in names}
        columns["target_id"].append(target_id)
        columns["refuses"].append(refuses(text))
        columns["leaks"].append(leaks(text, facts) if facts else None)
        columns["leaks_other"].append(bool(told[text] - {subject_id}) if facts else None)
    kinds = [("target_id", pa.string()), *((name, pa.bool_()) for name in ("refuses", "leaks", "leaks_other"))]
    unknown = sum(example_id not in by_id for _, example_id, _, _ in answers)
    notes = (
        [f"{unknown:,} of {len(answers):,} generated answers are of questions that the recipe's data lacks; not judged"]
        if examples is not None and unknown
        else []
    )
    return pa.table(columns, schema=pa.schema(kinds)), notes


def _other(opened: Cache, place: str, cache: Path | str | Store | None) -> pa.Table:
    """Forget rows of view `base` of another cache, which must count tokens alike."""
    if cache is None:
        return _OTHERS.empty_table()
    other = open_cache(cache)
    for name in ("tokenizer_sha256", "vocab_size"):
        here, there = (each.manifest.teacher.get(name) for each in (opened, other))
        if here != there:
            raise CacheError(
                f"cache {other.location}: its teacher's {name} is {there!r}, that of {opened.location} {here!r}"
            )
    with closing(connect(cache)) as connection:
        rows = connection.sql(
            f"SELECT '{place}' AS place, '{place} ' || target_id AS target_id, example_id, view, response_kind, "
            "token_ids, tail_logprob, topk_ids, topk_logprobs FROM targets WHERE view = 'base' AND split = 'forget'"
        ).to_arrow_table()
    if not len(rows):
        raise ConfigError(f"cache {other.location}: it has no forget rows of view base, which --{place} needs")
    return rows.cast(_OTHERS)


def _variant_table(variant: Variant, opened: Cache) -> pa.Table:
    vocab_size = opened.manifest.teacher.get("vocab_size")
    kinds = [("perturbation", pa.string()), ("strength", pa.float64()), ("noise_seed", pa.int64())]
    kinds += [("icu_id", pa.string()), ("otherwise", pa.string()), ("engine_id", pa.string())]
    columns = {name: [getattr(variant, name)] for name, _ in kinds}
    return pa.table({**columns, "vocab_size": [vocab_size]}, schema=pa.schema([*kinds, ("vocab_size", pa.int64())]))


def _dose(run: _Run, forget_rows: int, gates: Mapping[str, Gate]) -> Dose:
    readings = run.readings(gates)
    return Dose(
        variant=run.variant,
        forget_rows=forget_rows,
        readings=tuple(readings[name] for name in DOSE_READINGS),
        rows=tuple(run.rows()),
    )


def _dose_order(variant: Variant) -> tuple[str, str, float, int]:
    return variant.perturbation or "", variant.icu_id or "", variant.strength or 0, variant.noise_seed or 0


def _names(failing: Iterable[SubjectReading]) -> set[str]:
    return {each.subject_id for each in failing}


def _text(name: str) -> str:
    return (resources.files("vgid.stage1_teacher.diagnose") / name).read_text(encoding="utf-8")
