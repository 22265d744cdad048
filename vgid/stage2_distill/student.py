"""The student as a torch model: loaded, its dropout silenced, and the right weights made trainable.

Any `AutoModelForImageTextToText` whose forward honours `logits_to_keep`. Code from model repositories is never run and
pickled weights are never read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vgid.errors import DistillError
from vgid.stage2_distill.batches import bypassed
from vgid.stage2_distill.settings import DistillSettings, LoraSettings


def load_student(student: str, *, settings: DistillSettings) -> Any:
    """Load a model directory or Hugging Face id and mark what trains.

    With LoRA the result is a `PeftModel`; its fresh adapters leave the output unchanged.

    Raises:
        DistillError: the model does not load, has no recognisable vision tower, or lacks the layers named for LoRA.
    """
    model = load_base(student, settings=settings)
    model.requires_grad_(True)
    vision = vision_tower_name(model)
    if settings.lora is not None:
        return _with_adapters(model, settings.lora, vision=vision, settings=settings)
    if not settings.train_vision:
        model.get_submodule(vision).requires_grad_(False)
    return model


def vocabulary_size(model: Any) -> int:
    """Width of the logits (it may exceed the tokenizer's length)."""
    return int(model.get_output_embeddings().weight.shape[0])


def load_base(student: str, *, settings: DistillSettings) -> Any:
    """The model as the teacher uses it: without dropout, and nothing trains.

    Raises:
        DistillError: it does not load.
    """
    from transformers import AutoModelForImageTextToText

    try:
        model = AutoModelForImageTextToText.from_pretrained(
            student, dtype=getattr(torch, settings.dtype), use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise DistillError(f"student {student!r} does not load: {str(error).splitlines()[0]}") from error
    silence_dropout(model)
    return model.requires_grad_(False)


def check_plain_head(model: Any) -> None:
    """Refuse a fused loss for a model whose logits are more than its output layer's.

    Raises:
        DistillError: the output layer is adapted or no linear layer, or something happens to its result (a scale, a
            soft cap), which a loss made from the layer's input would leave out.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise DistillError(f"fused_head needs a plain output layer, found {type(head).__name__}; leave fused_head out")
    ids = torch.arange(4, device=head.weight.device)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = model(**inputs).logits
        with bypassed(head):
            hidden = model(**inputs).logits
        if not torch.allclose(head(hidden), logits, atol=1e-4):
            raise DistillError(
                f"{type(model).__name__} changes its logits after the output layer, which fused_head would leave out; "
                "leave fused_head out"
            )


def vision_tower_name(model: Any) -> str:
    """Dotted name of the module that turns pixels into features, as transformers knows it for the architecture.

    Raises:
        DistillError: none is found.
    """
    tower = model.get_encoder(modality="image")
    for name, module in model.named_modules():
        if module is tower and module is not model and module is not model.base_model:
            return name
    raise DistillError(
        f"{type(model).__name__}: no vision tower found among its modules; vgid does not know this model"
    )


def silence_dropout(model: nn.Module) -> None:
    """Set every dropout of the base to 0: a student in training mode must answer as the same weights do in use.

    Module attributes only, so the saved configuration keeps its own values.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def merged(model: Any) -> Any:
    """The model with its adapters, if any, added into the weights."""
    return model.merge_and_unload(safe_merge=True) if hasattr(model, "merge_and_unload") else model


def _with_adapters(model: Any, lora: LoraSettings, *, vision: str, settings: DistillSettings) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number does
        lora_dropout=lora.dropout,
        target_modules=_adapted_layers(model, lora, skip=None if settings.train_vision else vision),
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return get_peft_model(model, config)


def _adapted_layers(model: nn.Module, lora: LoraSettings, *, skip: str | None) -> list[str]:
    """Full names, since PEFT matches by last component and would reach into a vision tower with layers of that name."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    eligible = [name for name in linear if skip is None or not name.startswith(f"{skip}.")]
    chosen = [name for name in eligible if name.rpartition(".")[2] in lora.target_modules]
    unmatched = set(lora.target_modules) - {name.rpartition(".")[2] for name in chosen}
    if unmatched:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in eligible}))
        raise DistillError(f"lora.target_modules: no layer is called {', '.join(sorted(unmatched))}; there are {known}")
    return chosen
