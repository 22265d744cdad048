"""Stage one against plain vLLM: what it costs to keep the distributions, and what the order of the plan saves.

Every pass starts with the engine's caches empty. Within a pair one pass follows the other on the same loaded engine, so
that a slow minute of the machine meets both; the ratio of each pair counts, not the rates. Loading is not counted.

    python -m benchmarks teacher                              tiny model, as in `make bench`
    python -m benchmarks.teacher --size 2b --dtype bfloat16   the geometry of Qwen2-VL-2B, for a GPU
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PIL

from benchmarks.random_model import build_random_model
from vgid.cache.writer import CacheWriter
from vgid.data.chat import end_of_turn_id
from vgid.data.examples import Example
from vgid.pipeline.console import table
from vgid.stage1_teacher.engines import KeptTeacher, build_teacher
from vgid.stage1_teacher.generate import GenerateResult, generate, requests_of
from vgid.stage1_teacher.identity import engine_identity, identify_teacher
from vgid.stage1_teacher.options import DEFAULT_OPTIONS
from vgid.stage1_teacher.plan import PlannedTarget, cache_settings, make_plan
from vgid.stage1_teacher.settings import PerturbationSettings, PlanEntry, TeacherSettings

_QUESTIONS = (
    "Where does this person live?",
    "What does this person do for a living?",
    "What is the name of this person?",
    "Which pet does this person have?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A loaded engine and what it is asked."""

    teacher: Any
    plan: list[PlannedTarget]
    settings: TeacherSettings
    identity: dict[str, str | int]
    directory: Path


def main() -> None:
    """The tiny model, as `make bench` runs it."""
    run(parse([]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, for machines on which the tiny model says little."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "2b", "7b"), default="tiny")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--topk", type=int, default=64)
    parser.add_argument("--images", type=int, default=64, help="four questions each")
    parser.add_argument("--tokens", type=int, default=32, help="of every response")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--window", type=int, default=DEFAULT_OPTIONS.window, help="requests in the engine")
    parser.add_argument("--order-image-tokens", type=int, default=324, help="of a picture in the order benchmark")
    parser.add_argument("--only", choices=("capture", "order"))
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Print a table for each of the two questions."""
    if options.only != "order":
        capture(options)
    if options.only != "capture":
        order(options)


def capture(options: argparse.Namespace) -> None:
    """Tokens/s committed to Parquet, of plain generation, and of the peers' way."""
    with tempfile.TemporaryDirectory() as scratch:
        bench = prepare(Path(scratch) / "model", options, side=56, image_tokens=16)
        ways = {"vgid": ours, "plain vLLM": plain, "dicts and JSON lines": peers}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for name, way in ways.items():  # the first pass of each compiles kernels
            way(bench, Path(scratch) / f"{name}-warm")
        for number in range(options.pairs):
            for name, way in ways.items():
                rates[name].append(way(bench, Path(scratch) / f"{name}{number}"))
        bench.teacher.close()
    rows: list[list[Any]] = [
        [name, round(statistics.median(of)), f"{min(of):,.0f} to {max(of):,.0f}"] for name, of in rates.items()
    ]
    print(table(["way", "tokens/s, median", "range"], rows))
    for name in ("plain vLLM", "dicts and JSON lines"):
        ratios = [mine / theirs for mine, theirs in zip(rates["vgid"], rates[name], strict=True)]
        print(f"vgid over {name}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def order(options: argparse.Namespace) -> None:
    """The plan's order against a shuffled one: four questions on each perturbed picture."""
    side = 28 * round(options.order_image_tokens**0.5)
    with tempfile.TemporaryDirectory() as scratch:
        bench = prepare(Path(scratch) / "model", options, side=side, image_tokens=options.order_image_tokens)
        shuffled = list(bench.plan)
        random.Random(0).shuffle(shuffled)
        mixed = replace(bench, plan=shuffled)
        ours(bench, Path(scratch) / "warm")
        ratios: list[float] = []
        for number in range(options.pairs):
            in_order = ours(bench, Path(scratch) / f"order{number}")
            ratios.append(in_order / ours(mixed, Path(scratch) / f"mixed{number}"))
        bench.teacher.close()
    print(f"plan's order over shuffled: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def prepare(directory: Path, options: argparse.Namespace, *, side: int, image_tokens: int, draws: int = 1) -> Bench:
    """Build the model, make up pictures and load the engine."""
    build_random_model(directory, options.size, image_tokens=image_tokens, dtype=options.dtype)
    pictures = directory.parent / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(options.images):
        PIL.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    examples = [
        Example(
            example_id=f"{number}/{index}",
            split="forget",
            subject_id=str(number),
            task="facts",
            modality="image",
            image=pictures / f"{number}.png",
            question=question,
            answer="-",
        )
        for number in range(options.images)
        for index, question in enumerate(_QUESTIONS)
    ]
    settings = TeacherSettings(
        dtype=options.dtype,
        num_topk=options.topk,
        seed=0,
        perturbation=PerturbationSettings(name="gaussian", strength=1.0, draws=draws),
        icu="generic-v1",
        max_new_tokens=options.tokens,
        plan=(PlanEntry(split="forget", view="noise+icu", response_kind="generated"),),
    )
    identity = identify_teacher(directory, revision=None, dtype=options.dtype)
    plan = make_plan(examples, settings=settings, teacher=identity, engine_id=engine_identity("vllm", dtype="-"))
    teacher = build_teacher(
        "vllm",
        directory,
        num_topk=options.topk,
        dtype=options.dtype,
        options=replace(DEFAULT_OPTIONS, window=options.window),
    )
    return Bench(teacher=teacher, plan=plan, settings=settings, identity=identity, directory=directory)


def ours(bench: Bench, out: Path) -> float:
    """Tokens a second from the first request to the last committed row."""
    result = generate_into(bench, out)
    return result.tokens / result.seconds


def generate_into(bench: Bench, out: Path, **options: Any) -> GenerateResult:
    """Stage one as `vgid teacher generate` runs it, on the loaded engine with empty caches."""
    forget_caches(bench.teacher)
    with CacheWriter(out, teacher=bench.identity, settings=cache_settings(bench.settings), plan={}) as writer:
        return generate(
            bench.plan,
            settings=bench.settings,
            writer=writer,
            load_teacher=lambda: KeptTeacher(bench.teacher),
            processor=bench.teacher.processor,
            end_of_turn_id=end_of_turn_id(bench.directory, bench.teacher.processor.tokenizer),
            **options,
        )


def plain(bench: Bench, out: Path) -> float:
    """The same prompts through `LLM.generate`, neither log-probabilities nor text asked for."""
    return _generated(bench, write=lambda outputs: None, detokenize=False)


def peers(bench: Bench, out: Path) -> float:
    """The usual way: a dict of log-probabilities a token, every candidate decoded, JSON lines."""

    def write(outputs: Sequence[Any]) -> None:
        with out.open("w") as file:
            for output in outputs:
                rows = [
                    {token: [row.logprob, row.rank, row.decoded_token] for token, row in position.items()}
                    for position in output.outputs[0].logprobs
                ]
                record = {"id": output.request_id, "ids": list(output.outputs[0].token_ids), "logprobs": rows}
                file.write(json.dumps(record) + "\n")

    return _generated(bench, write=write, detokenize=True, logprobs=bench.settings.num_topk)


def _generated(bench: Bench, *, write: Callable[[Sequence[Any]], None], **params: Any) -> float:
    from vllm import SamplingParams

    teacher = bench.teacher
    forget_caches(teacher)
    bare = SamplingParams(temperature=0.0, max_tokens=bench.settings.max_new_tokens, **params)
    started = time.monotonic()
    requests = requests_of(bench.plan, bench.settings, processor=teacher.processor, end_of_turn_id=0)
    prompts = [teacher.prompt(request) for request in requests]
    tap, teacher._tap.enabled = teacher._tap.enabled, False
    try:
        outputs = teacher._llm.generate(prompts, bare, use_tqdm=False)
    finally:
        teacher._tap.enabled = tap
    write(outputs)
    return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.monotonic() - started)


def forget_caches(teacher: Any) -> None:
    """Empty the engine's caches of prefixes, encoder outputs and processed pictures."""
    engine = teacher._llm.llm_engine
    engine.reset_prefix_cache()
    engine.reset_mm_cache()
    engine.reset_encoder_cache()


if __name__ == "__main__":
    run(parse(None))
