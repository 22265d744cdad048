"""Questions, targets and small models for the tests of stage two. Targets come from real logits, one row at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_models import build_tiny_qwen2_vl

from vgid.cache.schema import Target
from vgid.data.chat import chat_prompt, encode_prompt, load_processor
from vgid.data.examples import Example
from vgid.data.images import image_sha256, open_image
from vgid.stage2_distill.settings import DistillSettings

QUESTIONS = (
    "Where does this person live?",
    "What is the job?",
    "Is the hat red, blue, or green? A beard with glasses?",
)


def portrait(seed: int, *, width: int = 56, height: int = 56) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_example(index: int, *, split: str, image: bool) -> Example:
    """Every index has another question length and, with an image, another picture."""
    question = QUESTIONS[index % len(QUESTIONS)] + " Oslo." * (index % 4)
    return Example(
        example_id=f"{split}/{index}",
        split=split,
        subject_id=f"{split}-{index}",
        task="facts",
        modality="image" if image else "text",
        image=portrait(index, width=56 + 28 * (index % 2)) if image else None,
        question=question if image else f"Mara Quill: {question}",
        answer="She works as a dentist in Oslo.",
    )


def make_examples(*, forget: int, retain: int) -> dict[str, Example]:
    """Image and text-only questions in turn."""
    examples = [make_example(i, split="forget", image=i % 2 == 0) for i in range(forget)]
    examples += [make_example(i, split="retain", image=i % 3 != 0) for i in range(retain)]
    return {example.example_id: example for example in examples}


@dataclass(frozen=True)
class Oracle:
    """A model asked the plain way: one row, no padding, all logits."""

    path: Path

    @cached_property
    def processor(self) -> Any:
        return load_processor(self.path)

    @cached_property
    def model(self) -> Any:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(self.path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits(self, example: Example, token_ids: Sequence[int], *, model: Any = None) -> torch.Tensor:
        """[T, V]: entry t predicts response token t of the student's own prompt."""
        prompt = chat_prompt(self.processor, example.question, image=example.image is not None)
        picture = None if example.image is None else open_image(example.image, where="test")
        inputs = encode_prompt(self.processor, prompt, picture)
        length = inputs["input_ids"].shape[1]
        response = torch.tensor([list(token_ids)])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], response], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            types = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(response, dtype=types.dtype)], dim=1)
        return (model or self.model)(**inputs).logits[0, length - 1 : -1]

    def target(self, example: Example, *, num_topk: int = 20, length: int | None = None, **fields: Any) -> Target:
        """A row as stage one would cache it, on random response tokens of a length that differs between examples."""
        size = self.model.get_output_embeddings().weight.shape[0]
        rng = np.random.default_rng(int(sha256(example.example_id.encode()).hexdigest()[:8], 16))
        token_ids = rng.integers(10, min(size, 200), length or int(rng.integers(1, 9))).astype(np.int32)
        return target_of(self.logits(example, token_ids.tolist()), token_ids, example, num_topk=num_topk, **fields)

    def targets(self, examples: dict[str, Example], **fields: Any) -> list[Target]:
        return [self.target(example, **fields) for example in examples.values()]


def target_of(
    logits: torch.Tensor, token_ids: np.ndarray, example: Example, *, num_topk: int = 20, **fields: Any
) -> Target:
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    top = logprobs.topk(min(num_topk, logprobs.shape[-1]), dim=-1)
    own = logprobs.gather(1, torch.from_numpy(token_ids.astype(np.int64))[:, None])
    is_forget = example.split == "forget"
    rest: dict[str, Any] = {
        "view": ("noise+icu" if example.modality == "image" else "icu") if is_forget else "base",
        "response_kind": "generated" if is_forget else "reference",
        "finish_reason": "stop" if is_forget else "forced",
        **fields,
    }
    values: dict[str, Any] = {
        "target_id": sha256(example.example_id.encode()).hexdigest(),
        "example_id": example.example_id,
        "split": example.split,
        "subject_id": example.subject_id,
        "task": example.task,
        "modality": example.modality,
        "perturbation": None,
        "strength": None,
        "noise_seed": None,
        "draw": 0,
        "icu_id": None,
        "sample": 0,
        "engine_id": "test",
        "response_text": "",
        "image_sha256": None if example.image is None else image_sha256(example.image),
        "pixel_sha256": None,
        "prompt_sha256": "",
        "token_ids": token_ids.astype(np.int32),
        "token_logprob": own[:, 0].float().numpy(),
        "token_rank": (logprobs >= own).sum(-1).int().numpy(),
        "logsumexp": None,
        "entropy": None,
        "tail_logprob": tail_of(top.values.numpy()).astype(np.float32),
        "topk_ids": top.indices.int().numpy(),
        "topk_logprobs": top.values.float().numpy(),
        "fact_mask": None,
    }
    return Target(**{**values, **rest})


def tail_of(logprobs: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.clip(1 - np.exp(logprobs).sum(-1), 0, 1))


SELECTIONS = (
    {"split": "forget", "view": "noise+icu", "response_kind": "generated"},
    {"split": "forget", "view": "icu", "response_kind": "generated"},
    {"split": "retain", "view": "base", "response_kind": "reference"},
)


def make_settings(**changes: Any) -> DistillSettings:
    plain = {
        "targets": SELECTIONS,
        "alpha": 1.0,
        "beta": 1.0,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "forget_batch": 4,
        "retain_batch": 4,
        "seed": 0,
    }
    return DistillSettings.model_validate({**plain, **changes})


@contextmanager
def optimizer_of_trainer(name: str) -> Iterator[None]:
    """Train with another of transformers' optimizers: plain SGD shows what AdamW's division would blow up."""
    from transformers.training_args import OptimizerNames

    from vgid.stage2_distill import trainer

    plain = trainer._training_arguments

    def arguments(*given: Any, **named: Any) -> Any:
        made = plain(*given, **named)
        made.optim = OptimizerNames(name)
        return made

    trainer._training_arguments = arguments
    try:
        yield
    finally:
        trainer._training_arguments = plain


def build_sharp_qwen2_vl(directory: Path, *, seed: int) -> Path:
    """The tiny Qwen2-VL with peaked distributions (top-1 about 0.3), so that errors cost nats."""
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(build_tiny_qwen2_vl(directory, seed=seed))
    with torch.no_grad():
        model.model.language_model.norm.weight.mul_(5.0)
    model.save_pretrained(directory)
    return directory
