"""Which weights learn, and that a fresh student answers as its base does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from distill_cases import Oracle, make_settings
from torch import nn

from vgid.data.examples import Example
from vgid.errors import DistillError
from vgid.stage2_distill.student import (
    load_student,
    merged,
    projector_names,
    randomly_rounded,
    silence_dropout,
    vision_tower_name,
    vocabulary_size,
)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_layer_name_that_matches_nothing_is_refused(qwen: Oracle) -> None:
    settings = make_settings(method="lora", lora={"target_modules": ["q_proj", "query"]})
    with pytest.raises(DistillError, match=r"no layer of the language model is called query; there are .*q_proj"):
        load_student(str(qwen.path), settings=settings)


def test_a_model_without_a_vision_tower_is_refused(qwen: Oracle) -> None:
    with pytest.raises(DistillError, match="no vision tower"):
        vision_tower_name(qwen.model.model.language_model)


def test_a_model_without_a_projector_is_refused(qwen: Oracle) -> None:
    with pytest.raises(DistillError, match=r"no projector found \(a module called multi_modal_projector, merger"):
        projector_names(qwen.model.model.language_model)


def test_an_adapter_on_a_head_that_is_also_the_embeddings_is_refused(qwen: Oracle, llava: Oracle) -> None:
    settings = make_settings(method="lora", lora={"target_modules": ["q_proj", "lm_head"]})
    with pytest.raises(DistillError, match="lm_head shares its weights with the input embeddings"):
        load_student(str(qwen.path), settings=settings)
    assert "base_model.model.lm_head.lora_A.default.weight" in trainable(
        load_student(str(llava.path), settings=settings)
    )


def test_a_directory_without_a_model_is_refused(tmp_path: Any) -> None:
    with pytest.raises(DistillError, match="does not load"):
        load_student(str(tmp_path), settings=make_settings())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_fresh_student_in_training_mode_answers_as_its_base(
    method: str, qwen: Oracle, examples: dict[str, Example]
) -> None:
    student = load_student(str(qwen.path), settings=make_settings(method=method)).train()
    for example in list(examples.values())[:2]:
        expected = qwen.logits(example, [11, 12, 13])
        torch.testing.assert_close(qwen.logits(example, [11, 12, 13], model=student), expected, rtol=0, atol=1e-5)


def test_the_seed_decides_the_adapters(qwen: Oracle) -> None:
    def adapters(seed: int) -> dict[str, torch.Tensor]:
        model = load_student(str(qwen.path), settings=make_settings(method="lora", seed=seed))
        return {name: parameter for name, parameter in model.named_parameters() if "lora_A" in name}

    one, same, other = adapters(1), adapters(1), adapters(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_dropout_of_the_base_is_silenced_and_its_configuration_kept(qwen: Oracle) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_dropout, self.drop = 0.1, nn.Dropout(0.2)

    model = nn.Sequential(Block(), nn.Dropout(0.3))
    silence_dropout(model)
    assert model[0].attention_dropout == 0.0
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.0, 0.0]


def test_adapters_keep_the_dropout_that_was_asked_for(qwen: Oracle) -> None:
    model = load_student(str(qwen.path), settings=make_settings(method="lora", lora={"dropout": 0.25}))
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.25}


def test_merging_keeps_the_output(qwen: Oracle, examples: dict[str, Example]) -> None:
    model = load_student(str(qwen.path), settings=make_settings(method="lora")).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    example = next(iter(examples.values()))
    before = qwen.logits(example, [11, 12, 13], model=model)
    assert (before - qwen.logits(example, [11, 12, 13])).abs().max() > 0.1
    plain = merged(model, seed=0)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    torch.testing.assert_close(qwen.logits(example, [11, 12, 13], model=plain), before, rtol=0, atol=1e-5)


def test_merging_into_bfloat16_keeps_updates_smaller_than_its_steps(qwen: Oracle) -> None:
    """Of these, rounding to the nearest keeps a third: nine of ten weights would stay where they were."""
    model = load_student(str(qwen.path), settings=make_settings(method="lora", dtype="bfloat16"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=2e-4)
    again, layer = copy.deepcopy(model), model.base_model.model.model.language_model.layers[0].mlp.down_proj
    before, update = layer.weight.detach().float(), layer.get_delta_weight("default").detach()

    plain = merged(model, seed=0)

    def kept(weight: torch.Tensor) -> float:
        """What of the update is there, as a projection on it."""
        return float(((weight.detach().float() - before) * update).sum() / update.square().sum())

    assert kept((before + update).bfloat16()) < 0.5, "these updates are not small"
    assert 0.9 < kept(plain.model.language_model.layers[0].mlp.down_proj.weight) < 1.1
    assert all(map(torch.equal, plain.parameters(), merged(again, seed=0).parameters()))


def test_random_rounding_takes_a_neighbour_and_is_right_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    on_grid = torch.randn(1000, generator=generator).bfloat16().float()
    assert torch.equal(randomly_rounded(on_grid, generator=generator), on_grid)
    exact = torch.randn(100, generator=generator).repeat(10_000, 1)
    rounded = randomly_rounded(exact, generator=generator)
    assert torch.equal(rounded, rounded.bfloat16().float())
    step = 2.0 ** (exact.abs().log2().floor() - 7)
    assert ((rounded - exact).abs() < step).all()
    # The mean of 10,000 draws of at most one step apart has a standard error of at most step / 200.
    assert ((rounded.mean(0) - exact[0]).abs() < step[0] / 40).all()


def test_vocabulary_is_the_width_of_the_logits(qwen: Oracle) -> None:
    assert vocabulary_size(qwen.model) == 400
