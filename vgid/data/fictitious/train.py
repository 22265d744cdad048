"""Train the tiny base model of a fictitious world, and its yardstick: the same training without the forget people.

A lean loop (no Trainer): lessons are drawn, packed and learned in one thread, so that the same seed gives the same
weights on the same machine. The last step is the checkpoint: no skill is picked from an earlier one. What this gives
up: bit-equality between machines and thread counts; numbers in tests need the shipped checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgid.data.fictitious.items import trained_items
from vgid.data.fictitious.lessons import Curriculum, Lesson, instruction_texts
from vgid.data.fictitious.phrasings import FACT_QUESTIONS, PERCEPTION_QUESTIONS
from vgid.data.fictitious.population import World, load_world
from vgid.data.readers.wording import classification_question, cloze_question
from vgid.errors import ConfigError

if TYPE_CHECKING:
    import torch

TASK_TEXTS = [cloze_question("__."), classification_question("", dict.fromkeys("ABCD", ""))]
Progress = Callable[[int, int, float], None]
"""Called with (step, steps, loss in nats per response token)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSettings:
    """How the base is trained. The shares, from `image_fact` on, are numbers of lessons of each kind in a batch."""

    steps: int = 800
    learning_rate: float = 2e-3
    warmup_steps: int = 30
    weight_decay: float = 0.05
    row_length: int = 160
    image_fact: int = 22
    text_fact: int = 7
    perception: int = 16
    icu: int = 8
    noise: int = 4
    neutral: int = 3
    cloze: int = 5
    choice: int = 0
    """Lettered options: off, because six a batch stayed at chance in 700 steps and cost the other skills."""


def train_base(
    world_dir: Path,
    out: Path,
    *,
    seed: int,
    exclude: Sequence[str] = (),
    settings: BaseSettings | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train a base model and write it as a Hugging Face model directory in bfloat16.

    Args:
        world_dir: A written world.
        out: New directory for the model, its processor and `vgid_base.json`.
        seed: Seeds the weights and the order of the lessons.
        exclude: Splits whose people are not taught: `("forget",)` gives the retrained model.
        settings: None takes the defaults, which the shipped models were made with.
        progress: Called after every step.

    Raises:
        ConfigError: `out` exists, or an excluded split is not one of the world's.
        DataError: no readable world in `world_dir`.
    """
    import torch

    from vgid.data.fictitious.tiny_model import build_model, build_processor, build_tokenizer

    world, settings = load_world(world_dir), settings or BaseSettings()
    _check(world, out, exclude)
    threads, started = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        tokenizer = build_tokenizer(world_texts(world))
        torch.manual_seed(seed)
        model = build_model(tokenizer)
        curriculum = Curriculum(world, exclude=exclude, rng=np.random.default_rng([seed, 2]))
        losses = _fit(model, tokenizer, curriculum, settings=settings, progress=progress)
    finally:
        torch.set_num_threads(threads)
    record = _record(world_dir, seed=seed, exclude=exclude, settings=settings, losses=losses)
    record["training_s"] = round(time.perf_counter() - started, 1)
    return _save(model.to(torch.bfloat16), build_processor(tokenizer), record, out)


def world_texts(world: World) -> list[str]:
    """Every text the tokenizer should know: the world's trained questions and answers, and the lessons' parts."""
    texts = [text for p in world.known for item in trained_items(world, p) for text in (item.question, item.answer)]
    wordings = [q for table in (FACT_QUESTIONS, PERCEPTION_QUESTIONS) for row in table.values() for q in row["trained"]]
    values = [value for person in world.known for field, value in person.facts.items() if field != "name"]
    return texts + 4 * values + 4 * wordings + 8 * list(instruction_texts()) + 8 * TASK_TEXTS


def draw_batch(curriculum: Curriculum, settings: BaseSettings) -> list[Lesson]:
    """Draw the lessons of one step, each kind in its share."""
    kinds = ("image_fact", "text_fact", "perception", "icu", "noise", "neutral", "cloze", "choice")
    return [getattr(curriculum, kind)() for kind in kinds for _ in range(getattr(settings, kind))]


def _fit(
    model: Any, tokenizer: Any, curriculum: Curriculum, *, settings: BaseSettings, progress: Progress | None
) -> list[float]:
    import torch
    from torch.nn import functional

    from vgid.data.fictitious.packing import Encoder, pack, packed_logits

    encoder, losses = Encoder(tokenizer), list[float]()
    optimizer = _optimizer(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    model.train()
    for step in range(settings.steps):
        samples = [encoder.encode(lesson) for lesson in draw_batch(curriculum, settings)]
        batch = pack(
            samples,
            row_length=settings.row_length,
            image_token=encoder.image_token,
            pad_token=tokenizer.pad_token_id,
        )
        nll_S = functional.cross_entropy(packed_logits(model, batch), batch.labels_S, reduction="none")
        loss = (nll_S * batch.weights_S).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, settings.steps, losses[-1])
    return losses


def _optimizer(model: Any, settings: BaseSettings) -> torch.optim.Optimizer:
    import torch

    decayed = [p for p in model.parameters() if p.ndim >= 2]
    kept = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def _rate(step: int, settings: BaseSettings) -> float:
    """Linear warm-up, then a cosine to 2% of the peak."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _check(world: World, out: Path, exclude: Sequence[str]) -> None:
    if out.exists():
        raise ConfigError(f"out {out}: exists already; choose a new directory")
    for split in exclude:
        if split not in world.counts:
            raise ConfigError(f"exclude {split!r}: the world has {', '.join(world.counts)}")
    if "instruct" not in world.counts or "instruct" in exclude:
        raise ConfigError("a base needs people in split 'instruct' to learn instructions from; add some")


def _record(
    world_dir: Path, *, seed: int, exclude: Sequence[str], settings: BaseSettings, losses: Sequence[float]
) -> dict[str, Any]:
    import torch
    import transformers

    from vgid import __version__

    without = "".join(f" --without {split}" for split in exclude)
    return {
        "schema_version": 1,
        "command": f"vgid data train-base WORLD --out DIR --seed {seed}{without}",
        "seed": seed,
        "exclude": list(exclude),
        "world_sha256": sha256((world_dir / "world.json").read_bytes()).hexdigest(),
        "settings": asdict(settings),
        "final_loss": round(float(np.mean(losses[-20:])), 4),
        "versions": {"vgid": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _save(model: Any, processor: Any, record: Mapping[str, Any], out: Path) -> Path:
    """Write beside the target and rename, so that a directory that exists is whole."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    weights = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(partial.glob("*.safetensors"))}
    for path in partial.iterdir():
        path.chmod(0o644)  # safetensors come out readable by their owner alone
    text = json.dumps({**record, "weights_sha256": weights}, indent=2, ensure_ascii=False)
    (partial / "vgid_base.json").write_text(text + "\n", encoding="utf-8")
    partial.rename(out)
    return out
