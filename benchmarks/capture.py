"""What k costs in stage one: tokens/s committed to Parquet and bytes per token, on the shipped model through vLLM.

Read the ratios within one run, since small machines are noisy. Loading the engine is not counted.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from vgid.cache.reader import open_cache
from vgid.pipeline.console import table
from vgid.pipeline.recipe import load_examples, load_recipe
from vgid.pipeline.teacher import prepare_teacher, run_teacher

REPEATS = 3
TOPK = (1, 20, 64)


def main() -> None:
    """Print one line per k."""
    measured = {k: [] for k in TOPK}
    for _ in range(REPEATS):  # interleaved, so that a slow minute of the machine meets every k
        for k in TOPK:
            measured[k].append(_one_pass(k))
    lines = []
    for k, passes in measured.items():
        rates = [rate for rate, _ in passes]
        lines.append([k, round(statistics.median(rates)), round(min(rates)), round(max(rates)), passes[0][1]])
    print(table(["k", "tokens/s, median", "min", "max", "bytes/token"], lines))


def _one_pass(num_topk: int) -> tuple[float, float]:
    recipe, folder = load_recipe("fictitious", overrides=[f"teacher.num_topk={num_topk}"])
    job = prepare_teacher(recipe, load_examples(recipe.data, folder=folder), engine="vllm")
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        result = run_teacher(job, cache)
        parts = open_cache(cache).manifest.parts
    return result.tokens / result.seconds, sum(part.bytes for part in parts) / sum(part.tokens for part in parts)
