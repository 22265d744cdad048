"""A saved student answers in vLLM as in transformers: every architecture, LoRA merged in every part of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from distill_cases import make_examples, make_settings
from tiny_models import TINY_MODELS

from vgid.data.chat import load_processor
from vgid.data.images import open_image
from vgid.stage1_teacher.engines import TeacherRequest, TeacherResponse, build_teacher
from vgid.stage1_teacher.options import EngineName
from vgid.stage2_distill.export import save_student
from vgid.stage2_distill.student import load_student

IDENTITY = {"student": "abc", "settings": {"seed": 0}, "provenance": {}}


def changed_student(base: Path, out: Path) -> Path:
    """A student whose adapters say something, saved merged."""
    settings = make_settings(method="lora", train_vision=True, train_projector=True)
    model = load_student(str(base), settings=settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    save_student(model, processor=load_processor(base), out=out, base="base", identity=IDENTITY, result={})
    return out


def answers(engine: EngineName, model: Path) -> dict[str, TeacherResponse]:
    """Greedy answers to questions with and without a picture."""
    examples = make_examples(forget=6, retain=6)
    teacher = build_teacher(engine, model, num_topk=1)
    try:
        requests = [
            TeacherRequest(
                request_id=name,
                text=example.question,
                image=None if example.image is None else open_image(example.image, where=name),
                max_new_tokens=12,
            )
            for name, example in examples.items()
        ]
        return {response.request_id: response for response in teacher.run(requests)}
    finally:
        teacher.close()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "qwen2_vl" else pytest.mark.slow) for name in TINY_MODELS]
)
def test_vllm_and_transformers_give_equal_greedy_answers(name: str, tmp_path: Path) -> None:
    base = TINY_MODELS[name](tmp_path / "base")
    student = changed_student(base, tmp_path / "student")
    served, expected, before = answers("vllm", student), answers("transformers", student), answers("transformers", base)
    assert served.keys() == expected.keys() and len(served) == 12
    for question, answer in served.items():
        assert answer.token_ids.tolist() == expected[question].token_ids.tolist()
        # Tokens alone might agree by repetition; these are sensitive to every part of the model.
        assert np.abs(answer.token_logprob - expected[question].token_logprob).max() < 1e-4
    moved = [abs(answer.token_logprob[0] - before[question].token_logprob[0]) for question, answer in served.items()]
    assert np.median(moved) > 1e-2
