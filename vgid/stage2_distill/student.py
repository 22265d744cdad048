"""The student as a torch model: loaded, its dropout silenced, and the right weights made trainable.

Any `AutoModelForImageTextToText` whose forward honours `logits_to_keep`. Code from model repositories is never run and
pickled weights are never read.

A model has three parts, told apart by where a weight lies and never by what its layer is called: CLIP's layers are
q_proj, k_proj and v_proj like Llama's, and Qwen2.5-VL's tower has gate_proj, up_proj and down_proj like Qwen's.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vgid.errors import DistillError
from vgid.stage2_distill.batches import bypassed
from vgid.stage2_distill.settings import DistillSettings, LoraSettings

Part = Literal["language", "projector", "vision"]

_PROJECTORS = ("multi_modal_projector", "merger", "deepstack_merger_list", "connector")
"""What transformers calls the module between picture and language: in LLaVA and its kin; in Qwen-VL, inside the vision
tower; in Qwen3-VL, its further ones that feed the language model's first layers; in Idefics and its kin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """Where the parts of a model lie, as dotted names of modules."""

    vision: str
    projector: tuple[str, ...]
    """Outside the vision tower or inside it."""

    def part_of(self, name: str) -> Part:
        """The part that a module or weight belongs to."""
        if any(name.startswith(f"{module}.") for module in self.projector):
            return "projector"
        return "vision" if name.startswith(f"{self.vision}.") else "language"


def load_student(student: str, *, settings: DistillSettings) -> Any:
    """Load a model directory or Hugging Face id and mark what trains.

    With LoRA the result is a `PeftModel`; its fresh adapters leave the output unchanged.

    Raises:
        DistillError: the model does not load, has no recognisable vision tower or projector, or lacks the layers named
            for LoRA.
    """
    model = load_base(student, settings=settings)
    anatomy = Anatomy(vision=vision_tower_name(model), projector=projector_names(model))
    learning = learning_parts(settings)
    if settings.lora is not None:
        return _with_adapters(model, settings.lora, anatomy=anatomy, learning=learning, seed=settings.seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(anatomy.part_of(name) in learning)
    return model


def learning_parts(settings: DistillSettings) -> frozenset[Part]:
    """Which parts learn."""
    asked: dict[Part, bool] = {
        "language": True,
        "projector": settings.train_projector,
        "vision": settings.train_vision,
    }
    return frozenset(part for part, learns in asked.items() if learns)


def language_layers(model: Any) -> list[str]:
    """Class names of the language model's layers, of which transformers says that they belong on one device."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    anatomy, known = Anatomy(vision=vision_tower_name(base), projector=projector_names(base)), base._no_split_modules
    return sorted(
        {
            type(module).__name__
            for name, module in base.named_modules()
            if type(module).__name__ in (known or ()) and anatomy.part_of(name) == "language"
        }
    )


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
    except (OSError, ValueError, SafetensorError) as error:
        raise DistillError(f"student {student!r} does not load: {str(error).splitlines()[0]}") from error
    if settings.dtype == "float32":  # cuDNN would round the patch embedding's inputs to 10 bits of mantissa
        torch.backends.cudnn.allow_tf32 = False
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


def projector_names(model: Any) -> tuple[str, ...]:
    """Dotted names of the modules that turn image features into what the language model reads.

    Raises:
        DistillError: none is found.
    """
    found = tuple(name for name, _ in model.named_modules() if name.rpartition(".")[2] in _PROJECTORS)
    if not found:
        raise DistillError(
            f"{type(model).__name__}: no projector found (a module called {', '.join(_PROJECTORS)}); vgid does not "
            "know this model"
        )
    return found


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


def merged(model: Any, *, seed: int) -> Any:
    """The model with its adapters, if any, added into the weights: on the CPU, so that it is the same wherever it runs.

    A base in bfloat16 stands on that type's grid, and most updates of a short training are smaller than half a step:
    rounding to the nearest would throw them away, everywhere alike. So weights are rounded up or down at random, in
    proportion, which keeps the update on average; the noise this leaves is that of rounding a model to bfloat16 once.

    Args:
        model: A `PeftModel`, changed in place, or any other, given back as it is.
        seed: Keys that randomness, with each weight's name.
    """
    if not hasattr(model, "unload"):
        return model
    for name, layer in model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        weight_OI = layer.get_base_layer().weight.data
        wide = torch.promote_types(weight_OI.dtype, torch.float32)
        up_OR, down_RI = (getattr(layer, part)["default"].weight.data.to("cpu", wide) for part in ("lora_B", "lora_A"))
        exact_OI = weight_OI.to("cpu", wide) + (up_OR @ down_RI) * layer.scaling["default"]
        if weight_OI.dtype == torch.bfloat16:
            key = int.from_bytes(sha256(f"{seed}/{name}".encode()).digest()[:7])
            exact_OI = randomly_rounded(exact_OI, generator=torch.Generator().manual_seed(key))
        weight_OI.copy_(exact_OI)
    return model.unload()


def randomly_rounded(exact: Tensor, *, generator: torch.Generator) -> Tensor:
    """float32 values on one of the two neighbours of bfloat16's grid, each as likely as the value is near it.

    What is on the grid stays. bfloat16 is the upper half of a float32, so a carry out of the lower half is the step up
    (in size: the sign stands apart).
    """
    lower = torch.randint(0, 2**16, exact.shape, dtype=torch.int32, generator=generator)
    return (exact.view(torch.int32) + lower).bitwise_and_(-(2**16)).view(torch.float32)


def _with_adapters(model: Any, lora: LoraSettings, *, anatomy: Anatomy, learning: frozenset[Part], seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number does
        lora_dropout=lora.dropout,
        target_modules=_adapted_layers(model, lora, anatomy=anatomy, learning=learning),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def _adapted_layers(model: Any, lora: LoraSettings, *, anatomy: Anatomy, learning: frozenset[Part]) -> list[str]:
    """Full names, since PEFT matches by last component and would reach into a vision tower with layers of that name.

    In the language model the layers that are asked for; of the other parts, if they learn, every linear layer.
    """
    linear = {name: anatomy.part_of(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    eligible = {name.rpartition(".")[2] for name, part in linear.items() if part == "language"}
    if unmatched := set(lora.target_modules) - eligible:
        missing, known = (", ".join(sorted(names)) for names in (unmatched, eligible))
        raise DistillError(
            f"lora.target_modules: no layer of the language model is called {missing}; there are {known}"
        )
    chosen = [
        name
        for name, part in linear.items()
        if part in learning and (part != "language" or name.rpartition(".")[2] in lora.target_modules)
    ]
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight and any(model.get_submodule(name) is head for name in chosen):
        raise DistillError(
            "lora.target_modules: lm_head shares its weights with the input embeddings in this model, so its adapter "
            "could not be merged without changing those; leave it out"
        )
    return chosen
