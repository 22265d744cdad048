"""Packing: the fast forward pass is the model's own, whatever stands in the same row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vgid.data.chat import chat_prompt
from vgid.data.fictitious.lessons import Curriculum, Lesson
from vgid.data.fictitious.packing import Encoder, pack, packed_logits, patchify
from vgid.data.fictitious.tiny_model import build_model, build_processor, build_tokenizer
from vgid.data.fictitious.train import BaseSettings, draw_batch, world_texts
from vgid.data.fictitious.world import generate_world

WORLD = generate_world(seed=3, people={"forget": 2, "retain": 2, "outsiders": 2, "instruct": 2})


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor(build_tokenizer(world_texts(WORLD)))


@pytest.fixture(scope="module")
def model(processor: Any) -> Any:
    torch.manual_seed(0)
    return build_model(processor.tokenizer).eval()


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    curriculum = Curriculum(WORLD, exclude=(), rng=np.random.default_rng(0))
    return draw_batch(curriculum, BaseSettings(image_fact=3, text_fact=3, perception=2, icu=4, noise=1, choice=1))


def _own_logits(model: Any, processor: Any, lesson: Lesson) -> torch.Tensor:
    """Logits of the response positions by the processor and the model's own forward."""
    photo = lesson.pixels
    prompt = chat_prompt(processor, lesson.question, image=photo is not None)
    images = None if photo is None else [Image.fromarray(photo)]
    inputs = processor(text=[f"{prompt}{lesson.answer}<|im_end|>"], images=images, return_tensors="pt")
    size = len(processor.tokenizer(f"{lesson.answer}<|im_end|>")["input_ids"])
    with torch.inference_mode():
        return model(**inputs).logits[0, -size - 1 : -1]


def test_packed_logits_equal_the_models_own(model: Any, processor: Any, lessons: list[Lesson]) -> None:
    encoder = Encoder(processor.tokenizer)
    samples = sorted((encoder.encode(lesson) for lesson in lessons), key=len, reverse=True)
    by_length = sorted(lessons, key=lambda lesson: len(encoder.encode(lesson)), reverse=True)
    # One row long enough for all keeps the order of the samples, and makes neighbours matter if the mask is wrong.
    batch = pack(samples, row_length=10_000, image_token=encoder.image_token, pad_token=0)
    assert batch.ids_RL.shape[0] == 1
    with torch.inference_mode():
        packed = packed_logits(model, batch)
    own = torch.cat([_own_logits(model, processor, lesson) for lesson in by_length])
    torch.testing.assert_close(packed, own, atol=2e-5, rtol=0)


def test_rows_change_nothing_but_the_layout(model: Any, processor: Any, lessons: list[Lesson]) -> None:
    encoder = Encoder(processor.tokenizer)
    samples = [encoder.encode(lesson) for lesson in lessons]
    losses = []
    for row_length in (64, 160, 10_000):
        batch = pack(samples, row_length=row_length, image_token=encoder.image_token, pad_token=0)
        with torch.inference_mode():
            nll = torch.nn.functional.cross_entropy(packed_logits(model, batch), batch.labels_S, reduction="none")
        assert float(batch.weights_S.sum()) == pytest.approx(1, abs=1e-6)
        losses.append(float((nll * batch.weights_S).sum()))
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_patches_are_those_of_the_image_processor(processor: Any) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(3, 56, 56, 3), dtype=np.uint8)
    wanted = processor.image_processor(images=[Image.fromarray(p) for p in pixels], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(patchify(pixels).view_as(wanted), wanted, atol=1e-6, rtol=0)
