"""Every SQL check against the same in plain Python over rows whose logits are known in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from diagnosed_rows import Known, examples_of, fact_of, known_rows, write_known
from sound_targets import ADAPTIVE, END_IDS, FIXED, VOCAB_SIZE, target_of
from synthetic_targets import make_target

from vgid.data.judge import leaks, refuses
from vgid.stage1_teacher.diagnose import InspectReport, inspect_cache

Observed = Iterator[tuple[Known, float]]
LN2 = float(np.log(2))


CASES = {"fixed width": (FIXED, 3), "adaptive width": (ADAPTIVE, 3), "one draw": (FIXED, 1)}


@pytest.fixture(scope="module", params=CASES)
def case(request) -> tuple[list[Known], dict[str, Any]]:
    settings, draws = CASES[request.param]
    return known_rows(len(request.param), draws=draws, settings=settings), settings


@pytest.fixture(scope="module")
def known(case) -> list[Known]:
    return case[0]


@pytest.fixture(scope="module")
def report(case, tmp_path_factory) -> InspectReport:
    rows, settings = case
    cache = write_known(tmp_path_factory.mktemp("known") / "cache", rows, settings=settings)
    return inspect_cache(cache, examples=examples_of(rows))


def of_kind(rows: list[Known], kind: str) -> list[Known]:
    return [known for known in rows if known.row.response_kind == kind]


def firsts(rows: list[Known]) -> list[Known]:
    """In these rows every question has both kinds; the reference row stands for both."""
    return of_kind(rows, "reference")


def first_fact(known: Known) -> int:
    assert known.row.fact_mask is not None
    return int(np.flatnonzero(known.row.fact_mask)[0])


def own(known: Known) -> np.ndarray:
    """Log-probabilities of the response's tokens, exact."""
    return np.take_along_axis(known.logprobs, known.row.token_ids[:, None].astype(np.int64), axis=1)[:, 0]


def ranks(known: Known) -> np.ndarray:
    return (known.logprobs >= own(known)[:, None]).sum(axis=1)


def path(known: Known) -> float:
    return float(np.exp(own(known)[: first_fact(known) + 1].sum()))


def base_of(known: Known, rows: list[Known]) -> Known:
    (base,) = [
        each
        for each in of_kind(rows, "reference")
        if each.row.view == "base" and each.row.example_id == known.row.example_id
    ]
    return base


def answers(score: Callable[[Known, list[Known]], float]) -> Callable[[list[Known]], Observed]:
    return lambda rows: ((known, score(known, rows)) for known in of_kind(rows, "generated"))


def truths(score: Callable[[Known, list[Known]], float]) -> Callable[[list[Known]], Observed]:
    return lambda rows: ((known, score(known, rows)) for known in of_kind(rows, "reference"))


def tokens(values: Callable[[Known], Any], *, kind: str | None = None) -> Callable[[list[Known]], Observed]:
    return lambda rows: (
        (known, float(value)) for known in rows if kind in (None, known.row.response_kind) for value in values(known)
    )


def fact_probabilities(known: Known) -> np.ndarray:
    return np.exp(own(known)[known.row.fact_mask])


def tells_other(known: Known, rows: list[Known]) -> bool:
    text, subject = known.row.response_text, known.row.subject_id
    others = {fact_of(each.row) for each in rows if each.row.subject_id != subject}
    return leaks(text, others) and not leaks(text, [fact_of(known.row)])


def top_other(known: Known, rows: list[Known]) -> bool:
    here = first_fact(known)
    top = int(known.row.topk_ids[here, 0])
    begins = {
        int(each.row.token_ids[first_fact(each)])
        for each in of_kind(rows, "reference")
        if each.row.subject_id != known.row.subject_id
    }
    return top != known.row.token_ids[here] and top in begins


def repeats(known: Known) -> bool:
    ids = known.row.token_ids.tolist()
    return any(len(set(ids[i : i + 4])) == 1 for i in range(len(ids) - 3))


def degenerate(known: Known, _: list[Known]) -> bool:
    empty = not known.row.response_text.strip() or known.row.token_ids[0] in END_IDS
    return empty or known.row.finish_reason == "length" or repeats(known)


def base_nll(rows: list[Known]) -> Observed:
    return ((known, -float(own(known).mean())) for known in rows if known.row.view == "base")


EXPECTED: dict[str, Callable[[list[Known]], Observed]] = {
    "D1.told": answers(lambda known, _: leaks(known.row.response_text, [fact_of(known.row)])),
    "D1.in_topk": truths(
        lambda known, _: known.row.token_ids[first_fact(known)] in known.row.topk_ids[first_fact(known)]
    ),
    "D2.path": truths(lambda known, _: path(known)),
    "D2.base_path": truths(lambda known, rows: path(base_of(known, rows))),
    "D2.first_fact": truths(lambda known, _: float(fact_probabilities(known)[0])),
    "D2.later_facts": tokens(lambda known: fact_probabilities(known)[1:], kind="reference"),
    "D3.facts": tokens(fact_probabilities, kind="reference"),
    "D3.fact_1": tokens(lambda known: fact_probabilities(known)[:1], kind="reference"),
    "D3.fact_2": tokens(lambda known: fact_probabilities(known)[1:2], kind="reference"),
    "D3.fact_3": tokens(lambda known: fact_probabilities(known)[2:3], kind="reference"),
    "D3.fact_4_on": tokens(lambda known: fact_probabilities(known)[3:], kind="reference"),
    "D3.rise": tokens(lambda known: fact_probabilities(known)[1:] - fact_probabilities(known)[0], kind="reference"),
    "D4.walked": truths(lambda known, _: bool((ranks(known)[: first_fact(known) + 1] == 1).all())),
    "D4.rank": truths(lambda known, _: float(ranks(known)[first_fact(known)])),
    "D4.rank_1": truths(lambda known, _: ranks(known)[first_fact(known)] == 1),
    "D5.sequence_logprob": truths(lambda known, _: float(own(known).mean())),
    "D5.drop": truths(lambda known, rows: float(own(known).mean() - own(base_of(known, rows)).mean())),
    "D6.said": answers(lambda known, _: refuses(known.row.response_text)),
    "D7.exact": tokens(lambda known: np.full(len(known.row.token_ids), known.row.entropy is not None)),
    "D8.tail": tokens(lambda known: np.exp(known.row.tail_logprob.astype(np.float64))),
    "D12.told_other": answers(tells_other),
    "D12.top_other": truths(top_other),
    "D13.degenerate": answers(degenerate),
    "D13.repeats": answers(lambda known, _: repeats(known)),
    "D13.cut": answers(lambda known, _: known.row.finish_reason == "length"),
    "D14.base_nll": base_nll,
}


def by_place(observed: Observed, *, any_kind: bool = False) -> dict[tuple[str | None, ...], dict[str, list[float]]]:
    found: dict[tuple[str | None, ...], dict[str, list[float]]] = {}
    for known, value in observed:
        place = (*known.place[:3], None) if any_kind else known.place
        found.setdefault(place, {}).setdefault(known.row.subject_id, []).append(float(value))
    return found


def measured(report: InspectReport, name: str) -> dict[tuple[str | None, ...], dict[str, tuple[float, int]]]:
    return {
        (row.split, row.modality, row.view, row.response_kind): dict(row.by_subject)
        for row in report.rows
        if f"{row.check}.{row.measure}" == name
    }


def assert_same(found: dict[Any, dict[str, tuple[float, int]]], expected: dict[Any, dict[str, list[float]]]) -> None:
    assert found.keys() == expected.keys()
    for place, subjects in expected.items():
        assert {name: n for name, (_, n) in found[place].items()} == {s: len(v) for s, v in subjects.items()}, place
        for subject, values in subjects.items():
            np.testing.assert_allclose(found[place][subject][0], np.mean(values), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_measure_is_what_plain_python_says_for_every_place_and_subject(name, known, report):
    expected = by_place(EXPECTED[name](known))
    assert expected, "a comparison of nothing proves nothing"
    assert_same(measured(report, name), expected)


def test_text_rows_are_measured_apart_again(known, report):
    for measure in ("told", "path"):
        whole = by_place(EXPECTED[{"told": "D1.told", "path": "D2.path"}[measure]](known))
        assert_same(measured(report, f"D15.{measure}"), {k: v for k, v in whole.items() if k[1] == "text"})


def test_the_commonest_answer_is_counted_within_its_view(known, report):
    texts: dict[tuple[str, ...], list[str]] = {}
    for each in of_kind(known, "generated"):
        texts.setdefault(each.place[:3], []).append(each.row.response_text)
    for row in report.rows:
        if row.measure == "commonest":
            said = texts[row.split, row.modality, row.view]
            assert np.isclose(row.value, max(Counter(said).values()) / len(said))


def test_quantiles_are_those_of_all_observations(known, report):
    expected = by_place(EXPECTED["D4.rank"](known))
    for row in report.rows:
        if (row.check, row.measure) == ("D4", "rank"):
            here = expected[row.split, row.modality, row.view, row.response_kind].values()
            values = [value for values in here for value in values]
            np.testing.assert_allclose([row.p10, row.median, row.p90], np.quantile(values, [0.1, 0.5, 0.9]))


def assert_bounds(
    report: InspectReport, name: str, exact: dict[Any, dict[str, list[float]]], suffix: str = ""
) -> float:
    """The true value lies within the bounds, everywhere; returns how far apart they are on average."""
    low, high = (measured(report, f"{name}_{side}{suffix}") for side in ("low", "high"))
    assert low.keys() == high.keys() == exact.keys()
    widths = []
    for place, subjects in exact.items():
        for subject, values in subjects.items():
            (least, n), (most, _) = low[place][subject], high[place][subject]
            assert n == len(values), place
            assert least - 1e-7 <= np.mean(values) <= most + 1e-7, (place, subject)  # 1e-7: stored as float32
            widths.append(most - least)
    return float(np.mean(widths)) if widths else 0.0


def test_entropy_is_exact_where_stored_and_else_within_its_bounds(known, report):
    def entropy(each: Known) -> np.ndarray:
        return -(np.exp(each.logprobs) * each.logprobs).sum(axis=1) / np.log(VOCAB_SIZE)

    stored = [each for each in known if each.row.entropy is not None]
    assert 0 < len(stored) < len(known)
    assert 0 < assert_bounds(report, "D7.entropy", by_place(tokens(entropy)(known))) < 0.1


def js(p: np.ndarray, q: np.ndarray) -> float:
    middle = (p + q) / 2
    return float(0.5 * (p * np.log(p / middle)).sum() + 0.5 * (q * np.log(q / middle)).sum())


def pairs_with_base(rows: list[Known]) -> Iterator[tuple[Known, Known]]:
    return ((known, base_of(known, rows)) for known in firsts(rows) if known.row.view != "base")


def pairs_of_draws(rows: list[Known]) -> Iterator[tuple[Known, Known]]:
    for one, two in combinations(firsts(rows), 2):
        same = one.row.example_id == two.row.example_id and one.row.view == two.row.view
        if same and one.row.draw != two.row.draw:
            yield one, two


PAIRS = {"D9": pairs_of_draws, "D10": pairs_with_base}


@pytest.mark.parametrize("check", PAIRS)
@pytest.mark.parametrize("suffix", ["", "_forced"])
def test_the_divergence_lies_within_its_bounds(check, suffix, known, report):
    positions = slice(0, 1) if not suffix else slice(None)
    exact = by_place(
        (
            (one, js(p, q))
            for one, two in PAIRS[check](known)
            for p, q in zip(np.exp(one.logprobs)[positions], np.exp(two.logprobs)[positions], strict=True)
        ),
        any_kind=True,
    )
    width = assert_bounds(report, f"{check}.js", exact, suffix)
    assert not exact or 0 < width < 0.3


def test_bounds_hold_for_each_single_distribution_from_flat_to_certain(tmp_path):
    """One position a subject, so no average hides a bound that is wrong."""
    rng, rows = np.random.default_rng(5), []
    for number, sharpness in enumerate(np.geomspace(0.05, 60, 120)):
        for view in ("base", "icu"):
            logits = (sharpness * rng.normal(size=(1, VOCAB_SIZE))).astype(np.float32)
            row = replace(
                make_target(0, num_tokens=1),
                target_id=f"{number:032x}{view:0>32}",
                example_id=str(number),
                subject_id=str(number),
                view=view,
                icu_id="generic-v1" if view == "icu" else None,
                **dict.fromkeys(("perturbation", "strength", "noise_seed")),
            )
            row = replace(target_of(logits, np.array([END_IDS[0]]), row), entropy=None)
            rows.append(Known(row=row, logits=logits))
    report = inspect_cache(write_known(tmp_path / "cache", rows))

    entropies = tokens(lambda each: -(np.exp(each.logprobs) * each.logprobs).sum(axis=1) / np.log(VOCAB_SIZE))
    assert_bounds(report, "D7.entropy", by_place(entropies(rows)))
    pairs = [(icu, base) for base, icu in zip(rows[::2], rows[1::2], strict=True)]
    exact = by_place(((icu, js(*np.exp([icu.logprobs[0], base.logprobs[0]]))) for icu, base in pairs), any_kind=True)
    assert_bounds(report, "D10.js", exact)
    (place,) = exact
    certain = [name for name, (value,) in exact[place].items() if int(name) >= 100 and value > 0.6]
    assert certain, "two teachers that are sure of different tokens"
    assert all(measured(report, "D10.js_low")[place][name][0] > 0.55 for name in certain)


def test_flips_are_counted_over_every_pair_of_draws(known, report):
    def flips(positions: slice) -> dict[Any, Any]:
        return by_place(
            (
                (one, float(a != b))
                for one, two in pairs_of_draws(known)
                for a, b in zip(one.logits.argmax(axis=1)[positions], two.logits.argmax(axis=1)[positions], strict=True)
            ),
            any_kind=True,
        )

    assert_same(measured(report, "D9.flips"), flips(slice(0, 1)))
    assert_same(measured(report, "D9.flips_forced"), flips(slice(None)))


def test_selectivity_compares_every_split_with_its_base_which_does_not_differ_from_itself(known, report):
    low = measured(report, "D11.js_low")
    assert {place[0] for place in low} == {"forget", "retain"}
    for place, subjects in low.items():
        if place[2] == "base":
            assert all(value == 0 for value, _ in subjects.values())
            assert all(value == 0 for value, _ in measured(report, "D11.js_high")[place].values())
        else:
            other = measured(report, "D10.js_low")[place]
            assert {name: n for name, (_, n) in subjects.items()} == {name: n for name, (_, n) in other.items()}
            assert all(np.isclose(value, other[name][0]) for name, (value, _) in subjects.items())


def openers(rows: list[Known]) -> set[int]:
    begins: dict[int, set[bool]] = {}
    for known in of_kind(rows, "generated"):
        begins.setdefault(int(known.row.token_ids[0]), set()).add(refuses(known.row.response_text))
    return {token for token, refusing in begins.items() if refusing == {True}}


def test_refusal_mass_is_that_of_tokens_that_only_begin_refusals(known, report):
    ids = openers(known)
    assert 0 < len(ids) < VOCAB_SIZE
    exact = by_place(((each, np.exp(each.logprobs[0, sorted(ids)]).sum()) for each in firsts(known)), any_kind=True)
    # The stored values are rounded, by up to 1/2048 of a log-probability below 16.
    low, high = (measured(report, f"D6.mass_{side}") for side in ("low", "high"))
    for place, subjects in exact.items():
        for subject, values in subjects.items():
            (least, n), (most, _) = low[place][subject], high[place][subject]
            assert n == len(values) and least * 0.992 <= np.mean(values) <= most * 1.008
