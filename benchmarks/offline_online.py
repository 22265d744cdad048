"""Is a student from the cache the one that distilling online gives? The fictitious benchmark, seed by seed.

One cache at k = 64 serves every student: smaller k and adaptive width keep what they would have stored of each row, and
the rest joins the tail. Online has the teacher in the loop, over the whole vocabulary. Two bugs are planted, which the
comparison must see if it can see anything: distributions one position late, and a tail that was thrown away. Seeds
order the rows and start the adapters; students of one seed are compared with each other. Finished students are kept in
`OUT` and only read again. About four minutes a student on 2 cores, the evaluation of all questions included.

    python -m benchmarks offline_online
    python -m benchmarks.offline_online --seeds 0 1 --ways online k64 shifted
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.synthetic_targets import narrowed, shifted
from vgid.cache.mapped import map_targets
from vgid.cache.reader import open_cache
from vgid.cache.schema import Target
from vgid.data.chat import load_processor
from vgid.pipeline import distill, evaluation
from vgid.pipeline.console import say, table
from vgid.pipeline.recipe import load_examples, load_recipe
from vgid.pipeline.teacher import prepare_teacher, run_teacher

OUT = Path("runs/bench/offline_online")
NUM_TOPK = 64
SEEDS = (0, 1, 2, 3, 4)
BOUND = 0.02
"""Half the width of the interval of equivalence, in each metric's own unit."""
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5% quantile of the t distribution by number of seeds."""


def keep(num_topk: int) -> Callable[[Target], Target]:
    """The row as a cache of fewer candidates has it."""
    return lambda row: narrowed(row, [num_topk] * len(row.token_ids))


def adaptive(row: Target) -> Target:
    """As many candidates as reach 0.999 of the mass, at least 8."""
    p = np.exp(row.topk_logprobs.astype(np.float64))
    before = np.cumsum(p, axis=-1) - p
    return narrowed(row, np.maximum((before < 0.999).sum(-1), 8).tolist())


def without_tail(row: Target) -> Target:
    """A bug: what was not stored is said to be impossible."""
    mass = np.exp(row.topk_logprobs.astype(np.float64)).sum(-1, keepdims=True)
    return replace(
        row,
        topk_logprobs=(row.topk_logprobs - np.log(mass)).astype(np.float32),
        tail_logprob=np.full_like(row.tail_logprob, -np.inf),
    )


WAYS: dict[str, Callable[[Target], Target]] = {
    "online": lambda row: row,
    "k64": lambda row: row,
    "k20": keep(20),
    "k8": keep(8),
    "adaptive": adaptive,
    "shifted": lambda row: shifted(row, 1),  # a bug: the distributions stand one position late
    "k8, no tail": lambda row: without_tail(keep(8)(row)),
}


def main() -> None:
    """Every way, five seeds."""
    run(parse([]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, for part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Train and evaluate what is not there yet, then print each way's difference from online."""
    OUT.mkdir(parents=True, exist_ok=True)
    recipe, folder = load_recipe("fictitious", overrides=[f"teacher.num_topk={NUM_TOPK}", "evaluate.per_cell=null"])
    examples = load_examples(recipe.data, folder=folder)
    run_teacher(prepare_teacher(recipe, examples, engine=options.engine), OUT / "cache")
    for seed in options.seeds:  # all ways of a seed before the next, so that a stopped run leaves whole pairs
        for way in options.ways:
            _student(way, seed, recipe, examples, engine=options.engine)
    for way in (name for name in options.ways if name != "online"):
        print(f"\n{way} minus online, {len(options.seeds)} seeds")
        print(table(["metric", "online", "difference", "95% interval", "within"], list(_lines(way, options.seeds))))


def _student(way: str, seed: int, recipe: Any, examples: Sequence[Any], *, engine: Any) -> None:
    from vgid.stage2_distill.trainer import distill as train

    out = OUT / way.replace(", ", "-").replace(" ", "-") / str(seed)
    if (out / "results.json").exists():
        return
    say(f"{way}, seed {seed}")
    settings = recipe.distill.model_copy(update={"seed": seed, "online": way == "online"})
    chosen = recipe.model_copy(update={"distill": settings})
    opened = open_cache(OUT / "cache")
    targets = distill.planned_targets(opened, map_targets(opened), chosen, examples, allow_partial=False)
    directory = distill.resolve_model(recipe.model, revision=recipe.revision)
    train(
        student=directory,
        examples={example.example_id: example for example in examples},
        targets=[WAYS[way](row) for row in targets],
        settings=settings,
        out=out / "student",
        provenance={"way": way},
        teacher_prompt=distill.teacher_prompts(
            chosen, examples, opened, targets, image_processor=load_processor(directory).image_processor
        ),
    )
    asked = evaluation.Questions(examples=examples, settings=recipe.evaluate, data_name="shipped")
    models = [evaluation.NamedModel(name="student", model=str(out / "student"))]
    evaluation.run_evaluate(models, asked, out=out, engine=engine, seed=seed)


def _lines(way: str, seeds: Sequence[int]) -> Iterable[list[Any]]:
    found = {name: [_metrics(name, seed) for seed in seeds] for name in (way, "online")}
    for key in found["online"][0]:
        online = [metrics[key] for metrics in found["online"]]
        differences = [metrics[key] - other for metrics, other in zip(found[way], online, strict=True)]
        mean = statistics.mean(differences)
        half = STUDENT_T[len(seeds)] * statistics.stdev(differences) / math.sqrt(len(seeds))
        inside = "yes" if abs(mean) + half <= BOUND else "NO"
        yield [
            " ".join(key),
            round(statistics.mean(online), 3),
            f"{mean:+.4f}",
            f"{mean - half:+.4f} to {mean + half:+.4f}",
            inside,
        ]


def _metrics(way: str, seed: int) -> dict[tuple[str, ...], float]:
    """Every score of plain answers and of the prefill attack, by split, task and modality."""
    path = OUT / way.replace(", ", "-").replace(" ", "-") / str(seed) / "results.json"
    kept = {}
    for row in json.loads(path.read_text())["metrics"]:
        if row["metric"] in ("rouge_l_f1", "leak", "refusal", "accuracy", "prefill_leak") and not (
            row.get("photo") or row.get("phrasing")
        ):
            kept[tuple(str(row[key]) for key in ("metric", "split", "task", "modality") if row.get(key))] = row["value"]
    return kept


if __name__ == "__main__":
    run(parse(None))
