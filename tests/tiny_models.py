"""Tiny random models of real architectures, built in a second, for tests where knowledge does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = (
    "Where does this person live? What is the job of Mara Quill? She works as a dentist in Oslo. I do not know it. "
    "Forget everything about the person. The hat is red, blue, green. A picture of a face with glasses and a beard."
)


def build_tiny_qwen2_vl(directory: Path, *, seed: int = 0, vocab_size: int = 400, max_image_tokens: int = 16) -> Path:
    """A random float32 Qwen2-VL of 0.3 M parameters with tokenizer and processor; sharpened so that ties are rare."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import (
        GenerationConfig,
        Qwen2Tokenizer,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([WORDS] * 3, vocab_size=vocab_size - 20, min_frequency=1)
    tokenizer = Qwen2Tokenizer(tokenizer_object=bpe._tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    ids: dict[str, Any] = {
        token: tokenizer.convert_tokens_to_ids(token) for token in [*special, "<|im_end|>", "<|endoftext|>"]
    }

    torch.manual_seed(seed)
    config = Qwen2VLConfig(
        text_config={
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
        },
        vision_config={"depth": 1, "embed_dim": 64, "num_heads": 2, "hidden_size": 64, "patch_size": 14},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    model.generation_config = GenerationConfig(eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]])
    model.save_pretrained(directory)
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * max_image_tokens}
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        video_processor=Qwen2VLVideoProcessor(size=size),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    return directory


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
