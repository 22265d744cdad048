"""From a user turn to model input: the one place that applies a chat template and a processor, for both stages.

The prompt text holds one image placeholder; the processor (or vLLM) expands it. Text of users may not contain the
tokenizer's special tokens: vLLM would take them for control tokens without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgid.data.examples import Example
from vgid.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from PIL import Image as PIL
    from transformers import ProcessorMixin


def load_processor(model: Path | str) -> ProcessorMixin:
    """Load the processor of a model directory or Hugging Face id.

    Raises:
        ConfigError: there is none, or it is not a multimodal processor.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(str(model))
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model {str(model)!r}: no processor could be loaded ({reason})") from error
    if not hasattr(processor, "image_processor"):
        raise ConfigError(f"model {str(model)!r}: its processor handles no images; vgid needs a multimodal model")
    return processor


def chat_prompt(processor: Any, text: str, *, image: bool) -> str:
    """Apply the chat template to one user turn and open the assistant's turn.

    Args:
        processor: A Hugging Face multimodal processor.
        text: The user's words, instruction included.
        image: Whether one image precedes the words.

    Raises:
        DataError: the words hold one of the tokenizer's special tokens.
    """
    check_no_special_tokens(processor.tokenizer, text)
    content: list[dict[str, str]] = [{"type": "image"}] if image else []
    content.append({"type": "text", "text": text})
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def check_no_special_tokens(tokenizer: Any, text: str) -> None:
    """Refuse user text that the tokenizer would read as control tokens.

    Raises:
        DataError: naming the token and the text.
    """
    for token in tokenizer.all_special_tokens + list(tokenizer.added_tokens_encoder):
        if token in text:
            raise DataError(f"text {text[:80]!r} contains the special token {token!r}; remove it from the data")


def check_examples(tokenizer: Any, examples: Iterable[Example], *, answers: bool) -> None:
    """Refuse examples whose question (and, where it will be forced, answer) holds a special token.

    Raises:
        DataError: naming the example.
    """
    for example in examples:
        for text in (example.question, *((example.answer,) if answers else ())):
            try:
                check_no_special_tokens(tokenizer, text)
            except DataError as error:
                raise DataError(f"example {example.example_id}: {error}") from error


def end_of_turn_id(model: Path | str, tokenizer: Any) -> int:
    """The id the model closes its answers with: the tokenizer's EOS if the generation config lists it, else its first.

    Raises:
        ConfigError: nothing names one.
    """
    ids = _generation_eos_ids(model)
    if tokenizer.eos_token_id is not None and (not ids or tokenizer.eos_token_id in ids):
        return int(tokenizer.eos_token_id)
    if not ids:
        raise ConfigError(f"model {str(model)!r}: neither tokenizer nor generation config names an end-of-turn token")
    return int(ids[0])


def end_of_turn_ids(model: Path | str, tokenizer: Any) -> frozenset[int]:
    """All ids at which the model's answers may end."""
    return frozenset((*_generation_eos_ids(model), end_of_turn_id(model, tokenizer)))


def _generation_eos_ids(model: Path | str) -> list[int]:
    from transformers import GenerationConfig

    try:
        listed = GenerationConfig.from_pretrained(str(model)).eos_token_id
    except OSError:
        listed = None
    return [listed] if isinstance(listed, int) else list(listed or [])


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of the vocabulary, merges and special tokens (the fast tokenizer's own serialisation)."""
    return sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def processor_sha256(processor: Any) -> str:
    """Hash of what turns an image and a turn into model input: image processor settings and chat template."""
    settings = processor.image_processor.to_dict()
    settings.pop("_processor_class", None)
    text = json.dumps([settings, processor.chat_template], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()


def tokenize_prompt(processor: Any, prompt: str) -> list[int]:
    """Ids of a chat prompt with one placeholder per image, not expanded: vLLM expands it itself."""
    return processor.tokenizer(prompt, add_special_tokens=_needs_special_tokens(processor, prompt))["input_ids"]


def encode_prompt(processor: Any, prompt: str, image: PIL.Image | None) -> dict[str, torch.Tensor]:
    """Model input of one chat prompt: `input_ids` int64 [1, P], placeholders expanded, and pixels."""
    return dict(
        processor(
            text=[prompt],
            images=None if image is None else [image],
            add_special_tokens=_needs_special_tokens(processor, prompt),
            return_tensors="pt",
        )
    )


def _needs_special_tokens(processor: Any, prompt: str) -> bool:
    """A template that writes the BOS token itself must not get a second one from the tokenizer."""
    bos = processor.tokenizer.bos_token
    return not (bos and prompt.startswith(bos))


def image_token_id(processor: Any) -> int:
    """The id of the placeholder that stands for an image in a prompt."""
    token_id = getattr(processor, "image_token_id", None)
    return token_id if isinstance(token_id, int) else processor.tokenizer.convert_tokens_to_ids(processor.image_token)


def image_token_ids(processor: Any, config: Any) -> frozenset[int]:
    """Ids that stand for image or video patches; a response may never hold one."""
    names = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
    found = {getattr(owner, name, None) for owner in (processor, config) for name in names}
    return frozenset(value for value in found if isinstance(value, int))
