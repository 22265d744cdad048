"""Measure every skill that the fictitious benchmark asks of its base model, and hold it against the bars.

    python benchmarks/base_skills.py MODEL --world DIR [--people N] [--json]

MODEL and DIR default to the shipped ones. Exit code 1 if a bar is missed. A retrained model is measured the same way;
it must miss the bars about forget people.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vgid.data.fictitious import shipped_base, shipped_world
from vgid.data.fictitious.bars import Verdict, judge_skills
from vgid.data.fictitious.skills import Skill, greedy_answers, measure_skills
from vgid.data.fictitious.world import load_world
from vgid.stage1_teacher.icu import TEMPLATES


def main() -> int:
    """Measure, print, and say by the exit code whether every bar is met."""
    arguments = _parser().parse_args()
    world = load_world(arguments.world)
    rows = measure_skills(greedy_answers(arguments.model), world, instructions=TEMPLATES, per_split=arguments.people)
    verdicts = judge_skills(rows)
    if arguments.json:
        print(json.dumps({"skills": [asdict(row) for row in rows], "bars": [_plain(v) for v in verdicts]}, indent=2))
    else:
        print("\n".join([*_table(rows), "", *_bars(verdicts)]))
    return 0 if all(verdict.met for verdict in verdicts) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the skills of a fictitious world's base model.")
    parser.add_argument("model", type=Path, nargs="?", default=shipped_base())
    parser.add_argument("--world", type=Path, default=shipped_world())
    parser.add_argument("--people", type=int, default=None, help="ask about only so many people of each split")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _table(rows: Sequence[Skill]) -> list[str]:
    """One line per cell, one column per split."""
    cells: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        cells[row.skill, row.modality, row.photo, row.phrasing, row.detail][row.split] = row.value
    splits = list(dict.fromkeys(row.split for row in rows))
    head = f"{'skill':16} {'by':5} {'photo':8} {'wording':8} {'detail':11} " + " ".join(f"{s:>9}" for s in splits)
    lines = [
        f"{key[0]:16} {key[1]:5} {key[2]:8} {key[3]:8} {key[4]:11} "
        + " ".join(f"{values[split]:9.3f}" if split in values else " " * 9 for split in splits)
        for key, values in sorted(cells.items())
    ]
    return [head, *lines]


def _bars(verdicts: Sequence[Verdict]) -> list[str]:
    return [
        f"{'met   ' if v.met else 'MISSED'} {v.bar.name:30} {v.value:.3f} (>= {v.bar.least:.2f}, lowest: {v.split})"
        for v in verdicts
    ]


def _plain(verdict: Verdict) -> dict[str, object]:
    return {**asdict(verdict.bar), "value": round(verdict.value, 4), "split": verdict.split, "met": verdict.met}


if __name__ == "__main__":
    sys.exit(main())
