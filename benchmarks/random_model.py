"""A Qwen2-VL of any size with random weights: speed does not depend on what a model knows.

Tokenizer and chat template are those of the shipped base; the vocabulary is padded to the width asked for.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from vgid.data.chat import load_processor
from vgid.data.fictitious import shipped_base

Size = Literal["tiny", "small", "0.5b", "2b", "7b"]

# "small" is what a CPU trains in reasonable time; "0.5b" has the language model of Qwen2-0.5B and a small vision tower,
# the last two the geometry of Qwen2-VL-2B and -7B (their config.json on the Hub).
_TEXT: dict[Size, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "vocab_size": 1536, "rope": [4, 6, 6]},
    "small": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    | {"num_key_value_heads": 4, "vocab_size": 16_384, "rope": [8, 12, 12]},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "vocab_size": 151936, "rope": [8, 12, 12]},
    "2b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    | {"num_key_value_heads": 2, "vocab_size": 151936, "rope": [16, 24, 24]},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    | {"num_key_value_heads": 4, "vocab_size": 152064, "rope": [16, 24, 24]},
}
_VISION: dict[Size, dict[str, Any]] = {
    "tiny": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "small": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "0.5b": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "2b": {"depth": 32, "embed_dim": 1280, "num_heads": 16},
    "7b": {"depth": 32, "embed_dim": 1280, "num_heads": 16},
}


def build_random_model(directory: Path, size: Size, *, image_tokens: int, dtype: str, seed: int = 0) -> Path:
    """Write a model directory.

    Args:
        directory: Made if missing.
        size: Geometry.
        image_tokens: Most tokens that a picture takes.
        dtype: Type of the stored weights.
        seed: Of the weights.
    """
    import torch
    import transformers

    shipped, processor = shipped_base(), load_processor(shipped_base())
    text = dict(_TEXT[size])
    rope = {"rope_type": "default", "mrope_section": text.pop("rope"), "rope_theta": 1e6}
    known = transformers.AutoConfig.from_pretrained(shipped)
    config = transformers.Qwen2VLConfig(
        text_config=text
        | {"max_position_embeddings": 4096, "rope_parameters": rope, "tie_word_embeddings": size != "7b"}
        | {"bos_token_id": None, "eos_token_id": known.get_text_config().eos_token_id},
        vision_config=_VISION[size] | {"hidden_size": text["hidden_size"], "patch_size": 14},
        image_token_id=known.image_token_id,
        video_token_id=known.video_token_id,
        vision_start_token_id=known.vision_start_token_id,
        vision_end_token_id=known.vision_end_token_id,
        tie_word_embeddings=size != "7b",
    )
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config = transformers.GenerationConfig.from_pretrained(shipped)
    model.save_pretrained(directory)
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shipped / name, directory / name)
    processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * image_tokens}  # type: ignore[attr-defined]
    processor.save_pretrained(directory)
    return directory
