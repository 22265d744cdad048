"""Tiny random models of real architectures, built in a second, for tests where knowledge does not matter.

Each has what decides behaviour in the real ones: where the projector lies, which layers share a name, how a picture
becomes tokens. Weights are float32, and sharpened so that ties are rare.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = (
    "Where does this person live? What is the job of Mara Quill? She works as a dentist in Oslo. I do not know it. "
    "Forget everything about the person. The hat is red, blue, green. A picture of a face with glasses and a beard."
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_qwen2_vl(directory: Path, *, seed: int = 0, vocab_size: int = 400, max_image_tokens: int = 16) -> Path:
    """A Qwen2-VL of 0.3 M parameters with tokenizer and processor; its projector is `visual.merger`."""
    import transformers

    tokenizer, ids = _qwen_tokenizer(vocab_size)
    config = transformers.Qwen2VLConfig(
        text_config=_qwen_text(ids, vocab_size=vocab_size),
        vision_config={"depth": 1, "embed_dim": 64, "num_heads": 2, "hidden_size": 64, "patch_size": 14},
        **_qwen_tokens(ids),
    )
    _save_model(transformers.Qwen2VLForConditionalGeneration, config, directory, seed=seed, eos=_qwen_eos(ids))
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * max_image_tokens}
    transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=size),
        video_processor=transformers.Qwen2VLVideoProcessor(size=size),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    return directory


def build_tiny_qwen2_5_vl(directory: Path, *, seed: int = 0, vocab_size: int = 400) -> Path:
    """A Qwen2.5-VL; the tower's layers share `gate_proj`, `up_proj` and `down_proj` with the language model."""
    import transformers

    tokenizer, ids = _qwen_tokenizer(vocab_size)
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    config = transformers.Qwen2_5_VLConfig(
        text_config=_qwen_text(ids, vocab_size=vocab_size),
        vision_config={**vision, "fullatt_block_indexes": [1]},
        **_qwen_tokens(ids),
    )
    _save_model(transformers.Qwen2_5_VLForConditionalGeneration, config, directory, seed=seed, eos=_qwen_eos(ids))
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=size),
        video_processor=transformers.Qwen2VLVideoProcessor(size=size),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    return directory


def build_tiny_qwen3_vl(directory: Path, *, seed: int = 0, vocab_size: int = 400) -> Path:
    """A Qwen3-VL; beside `visual.merger` it has two mergers that feed the language model's first layers (deepstack)."""
    import transformers

    tokenizer, ids = _qwen_tokenizer(vocab_size)
    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    text = _qwen_text(ids, vocab_size=vocab_size)
    config = transformers.Qwen3VLConfig(
        text_config={
            **text,
            "num_hidden_layers": 3,  # what deepstack adds behind a last layer at a picture's place, nothing reads
            "head_dim": 32,
            "rope_parameters": {**text["rope_parameters"], "mrope_interleaved": True},
        },
        vision_config={**vision, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        **_qwen_tokens(ids),
    )
    _save_model(transformers.Qwen3VLForConditionalGeneration, config, directory, seed=seed, eos=_qwen_eos(ids))
    half, size = [0.5, 0.5, 0.5], {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 16}
    pictures: dict[str, Any] = {"patch_size": 16, "image_mean": half, "image_std": half, "size": size}
    transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**pictures),
        video_processor=transformers.Qwen3VLVideoProcessor(**pictures),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    return directory


def build_tiny_llava(directory: Path, *, seed: int = 0) -> Path:
    """A CLIP + Llama LLaVA of 16 patches; its tower's layers are called q_proj, k_proj and v_proj like Llama's."""
    import transformers

    from vgid.stage2_distill.export import use_published_layout

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=_bpe(380), eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<image>"]})
    image_id: Any = tokenizer.convert_tokens_to_ids("<image>")
    eos_id = tokenizer.eos_token_id
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 400}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": eos_id}
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14, **vision},
        text_config=text,
        image_token_index=image_id,
        image_seq_length=16,
    )
    _save_model(
        transformers.LlavaForConditionalGeneration, config, directory, seed=seed, eos=eos_id, sharpen_norms=True
    )
    use_published_layout(directory, model_type="llava")  # as real ones come
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"height": 56, "width": 56}, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>"),
    ).save_pretrained(directory)
    return directory


TINY_MODELS: dict[str, Callable[..., Path]] = {
    "llava": build_tiny_llava,
    "qwen2_vl": build_tiny_qwen2_vl,
    "qwen2_5_vl": build_tiny_qwen2_5_vl,
    "qwen3_vl": build_tiny_qwen3_vl,
}
"""By the `model_type` of their configuration; each takes a directory and a seed."""


def _bpe(size: int) -> Any:
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([WORDS] * 3, vocab_size=size, min_frequency=1)
    return bpe._tokenizer


def _qwen_tokenizer(vocab_size: int) -> tuple[Any, dict[str, Any]]:
    """A tokenizer with Qwen's special tokens, and their ids."""
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        tokenizer_object=_bpe(vocab_size - 20), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    names = [*special, "<|im_end|>", "<|endoftext|>"]
    return tokenizer, {token: tokenizer.convert_tokens_to_ids(token) for token in names}


def _qwen_tokens(ids: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": True,
    }


def _qwen_eos(ids: dict[str, Any]) -> list[int]:
    return [ids["<|im_end|>"], ids["<|endoftext|>"]]


def _qwen_text(ids: dict[str, Any], *, vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": True,
    }


def _save_model(
    model_class: Any, config: Any, directory: Path, *, seed: int, eos: Any, sharpen_norms: bool = False
) -> None:
    import torch
    from transformers import GenerationConfig

    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 or sharpen_norms:
                parameter.mul_(3.0)
    model.generation_config = GenerationConfig(eos_token_id=eos)
    model.save_pretrained(directory)
