"""Stage two against distilling online, and against plain supervised fine-tuning: steps/s and memory.

The same model, rows, batch and Trainer; the ways take turns, each in a process of its own, and ratios are taken within
a turn. Online is done the best way there is: with LoRA the teacher is the student with its adapters switched off, with
full training a frozen copy, and its picture and prompt are as long as the student's. Fine-tuning is cross-entropy on
the same responses. Steps count from the third on, when all is warm.

    python -m benchmarks distill
    python -m benchmarks.distill --size 2b --dtype bfloat16 --device cuda --steps 12
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PIL

from vgid.pipeline.console import table

WAYS = ("cache", "online", "fine-tuning")
WARM_UP = 2
"""Steps that are not counted."""


def main() -> None:
    """LoRA and full training, on the CPU."""
    run(parse([]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "0.5b", "2b", "7b"), default="small")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="rows of a step, half of them forget")
    parser.add_argument("--tokens", type=int, default=48, help="of every response")
    parser.add_argument("--topk", type=int, default=64)
    parser.add_argument("--image-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--fused-head", action="store_true", help="for the cache way")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Print one line a method and way."""
    if options.way is not None:
        print(json.dumps(measure(options)))
        return
    from benchmarks.random_model import build_random_model

    lines: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = build_random_model(
            Path(scratch) / "model", options.size, image_tokens=options.image_tokens, dtype=options.dtype
        )
        for method in options.methods:
            found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way in WAYS:
                    found[way].append(_in_a_process(options, way, method, model))
            for way in WAYS:
                lines.append([method, way, *_summary(found["cache"], found[way])])
    head = ["method", "way", "steps/s", "range", "cache / this", "peak MiB", "cache / this", "targets, % of step"]
    print(table(head, lines))


def _summary(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[Any]:
    rates = [each["steps/s"] for each in theirs]
    return [
        round(statistics.median(rates), 3),
        f"{min(rates):.3f} to {max(rates):.3f}",
        round(
            statistics.median(mine["steps/s"] / other["steps/s"] for mine, other in zip(ours, theirs, strict=True)), 3
        ),
        round(statistics.median(each["MiB"] for each in theirs)),
        round(statistics.median(mine["MiB"] / other["MiB"] for mine, other in zip(ours, theirs, strict=True)), 3),
        round(100 * statistics.median(each["targets"] for each in theirs), 2),
    ]


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Steps a second, most memory, and the share of the time in which targets were made into tensors."""
    import torch

    from vgid.stage2_distill import batches, trainer
    from vgid.stage2_distill.batches import TeacherPrompt

    (method,) = options.methods
    if options.way == "fine-tuning":
        trainer.DistillTrainer._loss = _cross_entropy  # pyright: ignore[reportPrivateUsage]
    in_targets = 0.0
    make = batches.teacher_tensors

    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal in_targets
        started = time.perf_counter()
        made = make(*arguments, **named)
        in_targets += time.perf_counter() - started
        return made

    batches.teacher_tensors = timed
    examples, targets = _rows(options)
    other = PIL.fromarray(np.random.default_rng(1).integers(0, 256, _shape(options), dtype=np.uint8))
    times: list[tuple[float, float]] = []

    def after_step(step: Any, num_steps: int) -> None:
        if options.device != "cpu":
            torch.cuda.synchronize()
        times.append((time.perf_counter(), in_targets))

    with tempfile.TemporaryDirectory() as scratch:
        trainer.distill(
            student=options.model,
            examples={example.example_id: example for example in examples},
            targets=targets,
            settings=_settings(options, method),
            out=Path(scratch) / "student",
            provenance={},
            teacher_prompt=lambda item: TeacherPrompt(item.example.question, other),
            progress=after_step,
        )
    (start, before), (end, after) = times[WARM_UP - 1], times[-1]
    peak = torch.cuda.max_memory_allocated() if options.device != "cpu" else _resident_peak()
    return {
        "steps/s": (len(times) - WARM_UP) / (end - start),
        "MiB": peak / 2**20,
        "targets": (after - before) / (end - start),
    }


def _cross_entropy(self: Any, model: Any, batch: Any, factor_B: Any) -> Any:
    import torch

    from vgid.stage2_distill.batches import response_logits
    from vgid.stage2_distill.loss_kernels import LossAndValues

    logits = response_logits(model, batch)[:, :-1]
    values = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), batch["token_ids_BT"].flatten(), reduction="none"
    ).view(batch["mask_BT"].shape)
    values = values * batch["mask_BT"]
    return LossAndValues((values * factor_B[:, None].to(values.dtype)).sum(), values.detach())


def _rows(options: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Examples and their targets; with fine-tuning the teacher's part is as small as it can be."""
    from tests.synthetic_targets import make_target
    from vgid.data.examples import Example
    from vgid.data.images import image_sha256

    rng = np.random.default_rng(0)
    examples, targets = [], []
    topk = 1 if options.way == "fine-tuning" else options.topk
    for index in range(4 * options.batch):
        split = "forget" if index % 2 else "retain"
        picture = _png(rng.integers(0, 256, _shape(options), dtype=np.uint8))
        example = Example(
            example_id=str(index),
            split=split,
            subject_id=str(index),
            task="facts",
            modality="image",
            image=picture,
            question="Where does this person live, and what for?",
            answer="-",
        )
        row = make_target(index, split=split, num_tokens=options.tokens, num_topk=topk)
        ids = 300 + row.topk_ids % 1000 if topk == 1 else 300 + np.argsort(rng.random((options.tokens, 1000)))[:, :topk]
        row = replace(
            row,
            example_id=example.example_id,
            image_sha256=image_sha256(picture),
            topk_ids=ids.astype(np.int32),
            token_ids=ids[:, 0].astype(np.int32),
        )
        examples.append(example)
        targets.append(row)
    return examples, targets


def _settings(options: argparse.Namespace, method: str) -> Any:
    from vgid.stage2_distill.settings import DistillSettings

    return DistillSettings.model_validate(
        {
            "targets": [
                {"split": "forget", "view": "noise+icu", "response_kind": "generated"},
                {"split": "retain", "view": "base", "response_kind": "reference"},
            ],
            "alpha": 1.0,
            "beta": 1.0,
            "learning_rate": 1e-5,
            "max_steps": options.steps,
            "forget_batch": options.batch // 2,
            "retain_batch": options.batch - options.batch // 2,
            "seed": 0,
            "dtype": options.dtype,
            "method": method,
            "online": options.way == "online",
            "fused_head": options.fused_head and options.way == "cache",
            "gradient_checkpointing": options.gradient_checkpointing,
        }
    )


def _shape(options: argparse.Namespace) -> tuple[int, int, int]:
    side = 28 * round(options.image_tokens**0.5)
    return side, side, 3


def _png(pixels: np.ndarray) -> bytes:
    import io

    file = io.BytesIO()
    PIL.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _in_a_process(options: argparse.Namespace, way: str, method: str, model: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.distill", "--way", way, "--methods", method, "--model", str(model)]
    for name in ("size", "dtype", "device", "steps", "batch", "tokens", "topk", "image_tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    for name in ("gradient_checkpointing", "fused_head"):
        command += [f"--{name.replace('_', '-')}"] if getattr(options, name) else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    run(parse(None))
