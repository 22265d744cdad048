"""What the shipped recipes for real models should take, by arithmetic: nothing here was measured.

Parameters and adapters are counted on models of the published geometry without memory (torch's meta device); the rest
is written out in `estimate`. What this gives up: fragmentation, kernels' workspaces, and the time to load a model and
read photos, which is most of what so small a job takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

QUESTION_TOKENS, RESPONSE_TOKENS = 100, 64
"""Instruction and question; the longest response the recipes allow."""
FORGET_ROWS, RETAIN_ROWS = 25 * 4, 475 * 4
"""People of forget_5 and retain_95, four open questions each."""
EVALUATED = (25 + 475 + 25) * 5
"""Questions that each model is asked: people of forget, retain and test, about five kinds of question each."""
FLOPS = 0.3 * 989e12
"""Of an H100 or H200: the dense bfloat16 peak of its data sheet, three tenths of it taken as reached."""
TEACHER_TOKENS_PER_S = 15_399
"""Committed tokens a second of a 2.2 B model at k = 64 on one H200 (docs/benchmarks.md); scaled by size."""
OVERHEAD_GIB = 3
"""CUDA's context, the vision tower's forward pass, workspaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One recipe's costs."""

    parameters: float
    adapters: float
    weights_gib: float
    training_gib: float
    """Everything that the training holds at its peak."""
    teacher_h: float
    distill_h: float
    evaluate_h: float


def estimate(name: str, *, rows_per_step: int, micro_batch: int) -> Estimate:
    """Costs of a shipped recipe on one GPU.

    Args:
        name: The recipe's model.
        rows_per_step: Forget and retain rows of an optimizer step.
        micro_batch: Rows on the device at one time.
    """
    build, picture_tokens = MODELS[name]
    config = build()
    parameters, adapters = _count(config)
    text = config.get_text_config()
    tokens = micro_batch * (picture_tokens + QUESTION_TOKENS + RESPONSE_TOKENS)
    weights = 2 * parameters
    trained = 16 * adapters  # float32: weight, gradient, and AdamW's two moments
    kept = 2 * tokens * text.num_hidden_layers * text.hidden_size  # bfloat16 input of every layer
    recomputed = 2 * 2 * tokens * (8 * text.hidden_size + 4 * text.intermediate_size)  # one layer, with gradients
    logits = micro_batch * (RESPONSE_TOKENS + 1) * text.vocab_size * (2 + 2)  # bfloat16, with their gradient
    steps = FORGET_ROWS / 4
    row_tokens = picture_tokens + QUESTION_TOKENS + RESPONSE_TOKENS
    speed = TEACHER_TOKENS_PER_S * 2.2e9 / parameters
    teacher_rows = FORGET_ROWS + RETAIN_ROWS
    return Estimate(
        parameters=parameters,
        adapters=adapters,
        weights_gib=weights / 2**30,
        training_gib=(weights + trained + kept + recomputed + logits) / 2**30 + OVERHEAD_GIB,
        teacher_h=_hours(teacher_rows, row_tokens, parameters, speed),
        # Forward, the same again for checkpointing, and a backward pass that needs no gradients of frozen weights.
        distill_h=steps * rows_per_step * row_tokens * 6 * parameters / FLOPS / 3600,
        evaluate_h=2 * _hours(EVALUATED, row_tokens, parameters, speed),
    )


def _hours(rows: int, row_tokens: int, parameters: float, speed: float) -> float:
    return (rows * row_tokens * 2 * parameters / FLOPS + rows * RESPONSE_TOKENS / speed) / 3600


def _count(config: Any) -> tuple[int, int]:
    import torch
    from transformers import AutoModelForImageTextToText

    from vgid.stage2_distill.settings import LoraSettings

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    lora = LoraSettings()
    adapted = [
        module
        for name, module in model.named_modules()
        if "language_model" in name and name.rpartition(".")[2] in lora.target_modules
    ]
    adapters = sum(lora.r * (layer.in_features + layer.out_features) for layer in adapted)
    return sum(parameter.numel() for parameter in model.parameters()), adapters


def _text(hidden: int, intermediate: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        **more,
    }


def _llava() -> Any:
    from transformers import LlavaConfig

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision |= {"image_size": 336, "patch_size": 14, "projection_dim": 768}
    return LlavaConfig(
        text_config={"model_type": "llama", **_text(4096, 11008, 32, 32, 32, 32064)},
        vision_config={"model_type": "clip_vision_model", **vision},
    )


def _qwen2(text: dict[str, Any], *, tied: bool) -> Any:
    from transformers import Qwen2VLConfig

    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    return Qwen2VLConfig(
        text_config={**text, "rope_parameters": rope, "tie_word_embeddings": tied},
        vision_config={"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": text["hidden_size"]},
        tie_word_embeddings=tied,
    )


def _qwen2_5() -> Any:
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    text = _text(2048, 11008, 36, 16, 2, 151936, rope_parameters=rope, tie_word_embeddings=True)
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def _qwen3() -> Any:
    from transformers import Qwen3VLConfig

    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6, "mrope_interleaved": True}
    text = _text(2560, 9728, 36, 32, 8, 151936, head_dim=128, rope_parameters=rope, tie_word_embeddings=True)
    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560}
    vision |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "llava-1.5-7b": (_llava, 24**2),
    "qwen2-vl-2b": (lambda: _qwen2(_text(1536, 8960, 28, 12, 2, 151936), tied=True), 37**2),
    "qwen2-vl-7b": (lambda: _qwen2(_text(3584, 18944, 28, 28, 4, 152064), tied=False), 37**2),
    "qwen2.5-vl-3b": (_qwen2_5, 37**2),
    "qwen3-vl-4b": (_qwen3, 32**2),
}
"""Published geometry, and the tokens of a photo of 1024x1024 pixels: patches of 28 (Qwen3-VL: 32) after merging, for
LLaVA-1.5 always 24 x 24."""


def main() -> None:
    """Print a table of all recipes."""
    print("| model | parameters | adapters | weights | training | teacher | distill | evaluate, twice |")
    print("|---|---|---|---|---|---|---|---|")
    for name in MODELS:
        costs = estimate(name, rows_per_step=8, micro_batch=2)
        hours = " | ".join(f"{60 * hours:.1f} min" for hours in (costs.teacher_h, costs.distill_h, costs.evaluate_h))
        print(
            f"| {name} | {costs.parameters / 1e9:.2f} B | {costs.adapters / 1e6:.1f} M | {costs.weights_gib:.1f} GiB | "
            f"{costs.training_gib:.1f} GiB | {hours} |"
        )


if __name__ == "__main__":
    main()
