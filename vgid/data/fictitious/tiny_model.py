"""A Qwen2-VL small enough to be trained on a laptop core in minutes: tokenizer, processor, model.

It has Qwen2-VL's architecture, special tokens and chat template (without the default system prompt, which would only
lengthen every sequence), so transformers and vLLM load it like a real one. What this gives up: any knowledge of the
world outside its benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

VOCAB_SIZE = 1536
PATCH, MERGE = 14, 2
INIT_STD = 0.06  # the library's 0.02 suits wide models; here it doubled the steps until facts were known
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: Iterable[str]) -> Any:
    """Train a byte-level BPE tokenizer (at most `VOCAB_SIZE` entries) on the texts of a world."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *SPECIAL_TOKENS[3:]],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def build_processor(tokenizer: Any) -> Any:
    """Join the tokenizer with Qwen2-VL's image processing, fixed to the portraits' 56x56 pixels and up."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    pixels = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 112 * 112}
    image = Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE, size=pixels)
    video = Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, size=pixels)
    return Qwen2VLProcessor(
        image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=CHAT_TEMPLATE
    )


def build_model(tokenizer: Any) -> Any:
    """Build the untrained model in float32; the caller seeds torch. Weights depend on the seed and the vocabulary."""
    from transformers import GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    def token(text: str) -> int:
        return tokenizer.convert_tokens_to_ids(text)

    config = Qwen2VLConfig(
        text_config={
            "initializer_range": INIT_STD,
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10_000.0},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "initializer_range": INIT_STD,
            "depth": 2,
            "embed_dim": 96,
            "num_heads": 3,
            "hidden_size": 128,
            "mlp_ratio": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")], pad_token_id=token("<|endoftext|>"), do_sample=False
    )
    return model
