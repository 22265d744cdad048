"""`vgid demo`: the whole story on the fictitious benchmark, told while it happens.

It calls what the commands call, on a run directory that a second run finds finished step by step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vgid.cache.sql import run_sql
from vgid.data.examples import Example
from vgid.errors import ConfigError
from vgid.pipeline import data_commands, distill, evaluation, teacher
from vgid.pipeline.apart import apart
from vgid.pipeline.console import say, table
from vgid.pipeline.recipe import load_examples, load_recipe
from vgid.pipeline.report import summary_table
from vgid.pipeline.results import write_results
from vgid.pipeline.run import student_line, teach, teacher_line, timed, whole_results
from vgid.stage2_distill.checkpoints import write_json

QUERY = """SELECT view, modality, response_text, count(*) AS targets,
  round(avg(list_avg(token_logprob)), 3) AS mean_logprob
FROM targets WHERE split = 'forget' GROUP BY ALL ORDER BY targets DESC LIMIT 5"""


def run_demo(out: Path, *, seed: int, from_scratch: bool, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run it; see the module docstring.

    Args:
        out: Run directory; filled as design section 4 says.
        seed: Of world, models, noise and training (with the shipped world: of noise and training).
        from_scratch: Make a new world and train its base and retrained model first.
        overrides: `a.b=c` settings on top of the shipped recipe.

    Returns:
        The results record.
    """
    started = time.monotonic()
    timings: dict[str, float] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"--out {out} is a file; name a directory") from error
    _claim(out, {"seed": seed, "from_scratch": from_scratch})

    say("\n[1/6] A world of people who do not exist, and a small model that knows them")
    with timed(timings, "world_and_base"):
        _make_world_and_base(out, seed=seed, from_scratch=from_scratch)
    recipe, folder = load_recipe("fictitious", overrides=[*_overrides(out, seed), *overrides])
    examples = load_examples(recipe.data, folder=folder)
    _print_world(examples)

    say("\n[2/6] Stage one: the frozen base sees noisy images and an instruction to forget; vLLM returns its top-k")
    with timed(timings, "teacher"):
        job = teacher.prepare_teacher(recipe, examples, engine="vllm")
        taught = teach(job, out / "cache")
    print(f"teacher: {teacher_line(job, taught, out / 'cache')}")

    say("\n[3/6] The cache is Parquet: ask it what the teacher says instead")
    print(f'\n  vgid sql {out / "cache"} "{QUERY}"\n')
    answer = run_sql(out / "cache", QUERY)
    print(table(answer.column_names, [list(row.values()) for row in answer.to_pylist()]))

    say("\n[4/6] Stage two: the student, on clean images and plain questions, learns the cached distributions")
    with timed(timings, "distill"):
        student = apart(distill.run_distill, recipe, examples, out / "cache", out / "student")
    print(f"student: {student_line(student)}")

    say("\n[5/6] Before and after, beside a model that never saw the forget set")
    names = ("base", "student", "retrained")
    models = [evaluation.NamedModel(name=name, model=str(out / name)) for name in names]
    questions = evaluation.Questions(examples=examples, settings=recipe.evaluate, data_name=str(out / "world"))
    evaluated = evaluation.run_evaluate(models, questions, out=None, seed=seed)

    say("\n[6/6] One question, three answers")
    _print_sample(evaluated["samples"], out / "cache")
    print("\n" + summary_table(evaluated["metrics"]))
    timings["total"] = time.monotonic() - started
    results = whole_results(recipe, evaluated, job, timings=timings, lineage={"teacher_pass": asdict(taught)})
    write_results(results, evaluated["samples"], out)
    print(f"\nresults: {out / 'results.json'}, every answer: {out / 'samples.parquet'} ({timings['total']:.0f} s)")
    return results


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """A run directory belongs to one seed; another seed in it would mix two worlds."""
    path = out / "demo.json"
    if not path.exists():
        write_json(path, settings)
        return
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is torn or not by vgid ({error}): which run lies beside it is not known; choose another --out or "
            f"delete {out}"
        ) from error
    if found != settings:
        raise ConfigError(f"--out {out} holds a demo with {found}, asked for {settings}; choose another --out")


def _make_world_and_base(out: Path, *, seed: int, from_scratch: bool) -> None:
    if not from_scratch:
        data_commands.copy_shipped(out)
        return
    if not (out / "world").exists():
        data_commands.make_world(out / "world", seed=seed, people={})
    say("training the base and the retrained model, one core each (a few minutes)")
    data_commands.train_base_and_retrained(out / "world", base=out / "base", retrained=out / "retrained", seed=seed)


def _overrides(out: Path, seed: int) -> list[str]:
    folder = out.resolve()
    return [
        f"model={json.dumps(str(folder / 'base'))}",
        f"data.world={json.dumps(str(folder / 'world'))}",
        f"teacher.seed={seed}",
        f"distill.seed={seed}",
    ]


def _print_world(examples: list[Example]) -> None:
    rows = []
    for split in dict.fromkeys(example.split for example in examples):
        inside = [example for example in examples if example.split == split]
        tasks = sorted({example.task for example in inside})
        rows.append([split, len({example.subject_id for example in inside}), len(inside), ", ".join(tasks)])
    print(table(["split", "people", "questions", "tasks"], rows))


def _print_sample(samples: list[dict[str, Any]], cache: Path) -> None:
    """A forget question about a photo and in words nobody trained on, and what the teacher said about that person."""
    asked = [
        sample
        for sample in samples
        if (sample["split"], sample["task"], sample["modality"]) == ("forget", "facts", "image")
        and (sample["photo"], sample["phrasing"], sample["attack"]) == ("heldout", "heldout", None)
    ]
    if not asked:
        return  # other splits were asked for with --set
    by_model = {name: [s for s in asked if s["model"] == name] for name in ("base", "student", "retrained")}
    shown = by_model["base"][0]
    same = {name: s["answer"] for name in by_model for s in by_model[name] if s["example_id"] == shown["example_id"]}
    subject = shown["subject_id"].replace("'", "''")
    taught = run_sql(
        cache, f"SELECT response_text FROM targets WHERE view = 'noise+icu' AND subject_id = '{subject}' LIMIT 1"
    )
    answers = {"truth": shown["reference"], "base": same["base"], "teacher": taught.to_pylist()[0]["response_text"]}
    answers |= {"student": same["student"], "retrained": same["retrained"]}
    print(f"\n  question (with a portrait of {shown['subject_id']}): {shown['question']}")
    for name, text in answers.items():
        print(f"  {name:>9}: {text}")
