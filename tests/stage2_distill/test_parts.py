"""Language model, projector and vision tower of every architecture: exactly what is asked for learns, and changes.

The names are written out here as transformers gives them, so that nothing of vgid says what is expected of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from distill_cases import Oracle, make_examples, make_settings
from tiny_models import TINY_MODELS
from torch import nn
from transformers import AutoModelForImageTextToText

from vgid.stage2_distill.student import language_layers, load_student, projector_names, vision_tower_name
from vgid.stage2_distill.trainer import distill


@dataclass(frozen=True)
class Architecture:
    tower: str
    projector: tuple[str, ...]
    projector_layers: frozenset[str]
    """Its linear layers."""
    tower_layers: frozenset[str]
    """Those of the tower, without the projector's."""
    depth: int = 2
    """Layers of the language model."""
    unread: tuple[str, ...] = ()
    """What the language model never sees anything of: no gradient arrives there."""

    @property
    def language_layers(self) -> set[str]:
        attention = tuple(f"self_attn.{name}_proj" for name in "qkvo")
        perceptron = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))
        return {
            f"model.language_model.layers.{layer}.{name}"
            for layer in range(self.depth)
            for name in attention + perceptron
        }


def blocks(count: int, *names: str) -> frozenset[str]:
    return frozenset(f"model.visual.blocks.{block}.{name}" for block in range(count) for name in names)


ARCHITECTURES = {
    "llava": Architecture(
        tower="model.vision_tower",
        projector=("model.multi_modal_projector",),
        projector_layers=frozenset(f"model.multi_modal_projector.linear_{number}" for number in (1, 2)),
        tower_layers=frozenset(
            f"model.vision_tower.encoder.layers.{layer}.{name}"
            for layer in range(2)
            for name in (*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
        ),
        unread=("model.vision_tower.encoder.layers.1.", "model.vision_tower.post_layernorm."),  # features of layer -2
    ),
    "qwen2_vl": Architecture(
        tower="model.visual",
        projector=("model.visual.merger",),
        projector_layers=frozenset(f"model.visual.merger.mlp.{number}" for number in (0, 2)),  # 1 is the GELU
        tower_layers=blocks(1, "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    ),
    "qwen2_5_vl": Architecture(
        tower="model.visual",
        projector=("model.visual.merger",),
        projector_layers=frozenset(f"model.visual.merger.mlp.{number}" for number in (0, 2)),
        tower_layers=blocks(2, "attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    ),
    "qwen3_vl": Architecture(
        tower="model.visual",
        projector=("model.visual.merger", "model.visual.deepstack_merger_list"),
        projector_layers=frozenset(
            f"model.visual.{module}.linear_fc{number}"
            for module in ("merger", "deepstack_merger_list.0", "deepstack_merger_list.1")
            for number in (1, 2)
        ),
        tower_layers=blocks(3, "attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"),
        depth=3,
    ),
}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Oracle]:
    """The model of an architecture and a seed."""
    return cache(lambda name, seed: Oracle(TINY_MODELS[name](tmp_path_factory.mktemp(name), seed=seed)))


def inside(names: set[str], modules: tuple[str, ...]) -> set[str]:
    return {name for name in names if any(name.startswith(f"{module}.") for module in modules)}


def parameters(path: Path) -> dict[str, nn.Parameter]:
    return dict(AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).named_parameters())


def test_every_architecture_with_a_shipped_small_model_is_written_out_here() -> None:
    assert ARCHITECTURES.keys() == TINY_MODELS.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tower_and_projector_are_found(name: str, oracle: Callable[[str, int], Oracle]) -> None:
    model = oracle(name, 0).model
    assert vision_tower_name(model) == ARCHITECTURES[name].tower
    assert projector_names(model) == ARCHITECTURES[name].projector


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_of_the_language_model_alone_are_spread_over_gpus(
    name: str, oracle: Callable[[str, int], Oracle]
) -> None:
    model = oracle(name, 0).model
    assert language_layers(model) == [type(model.model.language_model.layers[0]).__name__]


@pytest.mark.parametrize("also", ["nothing", "projector", "vision"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exactly_what_is_asked_for_learns_and_a_step_changes_it(
    name: str, method: str, also: str, oracle: Callable[[str, int], Oracle], tmp_path: Path
) -> None:
    architecture, base = ARCHITECTURES[name], oracle(name, 0)
    vision, projector = also == "vision", also == "projector"
    settings = make_settings(method=method, max_steps=1, train_vision=vision, train_projector=projector)
    before = parameters(base.path)
    if method == "full":
        in_projector = inside(set(before), architecture.projector)
        in_tower = inside(set(before), (architecture.tower,)) - in_projector
        expected = set(before) - in_projector - in_tower
        expected |= (in_projector if projector else set()) | (in_tower if vision else set())
        changing = expected
    else:
        layers = architecture.language_layers | (architecture.projector_layers if projector else set())
        layers |= architecture.tower_layers if vision else set()
        expected = {f"base_model.model.{layer}.lora_{half}.default.weight" for layer in layers for half in "AB"}
        changing = {f"{layer}.weight" for layer in layers}

    student = load_student(str(base.path), settings=settings)
    assert {name for name, parameter in student.named_parameters() if parameter.requires_grad} == expected

    examples = make_examples(forget=4, retain=4)
    distill(
        student=base.path,
        examples=examples,
        targets=oracle(name, 1).targets(examples),
        settings=settings,
        out=tmp_path / "student",
        provenance={},
        processor=base.processor,
    )
    after = parameters(tmp_path / "student")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in changing if not name.startswith(architecture.unread)}
