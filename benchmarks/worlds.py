"""The claim, on worlds nobody tuned on: new people, a new base and a new retrained model for each seed.

Settings were chosen on `TUNED_ON`; what is reported comes from `REPORTED_ON` alone. Every world is printed, whatever it
says. About six minutes a world on 2 cores.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import fields
from pathlib import Path
from typing import Any

from vgid.pipeline.console import table
from vgid.pipeline.demo import run_demo
from vgid.pipeline.report import find_value
from vgid.pipeline.unlearning import Verdict, meets_bar

TUNED_ON = (0, 101, 102)
REPORTED_ON = (11, 12, 13, 14)
OUT = Path("runs/bench/worlds")


def main() -> None:
    """Run the reported worlds (those that are finished are only read) and print one line each."""
    lines = []
    for seed in REPORTED_ON:
        out = OUT / str(seed)
        results = _finished(out) or run_demo(out, seed=seed, from_scratch=True, overrides=["evaluate.per_cell=null"])
        lines.append(_line(seed, results["metrics"]))
    names = ["seed", "passed", *(field.name for field in fields(Verdict)), "prefill_leak", "distance", "base_distance"]
    means = ["mean", "", *(statistics.mean(line[i] for line in lines) for i in range(2, len(names)))]
    print(table(names, [*lines, means]))


def _finished(out: Path) -> dict[str, Any] | None:
    path = out / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


def _line(seed: int, metrics: list[dict[str, Any]]) -> list[Any]:
    verdict = meets_bar(metrics)
    place = {"split": "forget", "task": "facts"}
    return [
        str(seed),
        "yes" if verdict.passed else "NO",
        *(getattr(verdict, field.name) for field in fields(Verdict)),
        find_value(metrics, metric="prefill_leak", model="student", **place),
        find_value(metrics, metric="answer_distance", model="student", **place),
        find_value(metrics, metric="answer_distance", model="base", **place),
    ]
