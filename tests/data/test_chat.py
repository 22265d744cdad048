"""Chat prompts: one template for both stages, and no control tokens out of users' text."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tiny_models import build_tiny_qwen2_vl
from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from vgid.data.chat import (
    chat_prompt,
    check_no_special_tokens,
    encode_prompt,
    end_of_turn_id,
    image_token_id,
    image_token_ids,
    load_processor,
    processor_sha256,
    tokenize_prompt,
    tokenizer_sha256,
)
from vgid.data.images import open_image
from vgid.errors import ConfigError, DataError


def tiny_tokenizer(*, special: tuple[str, ...] = ("<image>",), plain_added: tuple[str, ...] = ()):
    """A byte-level tokenizer without merges, with the tokens asked for."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["ab"], vocab_size=256)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="</s>", bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    added: Any = [AddedToken(token, special=False) for token in plain_added]
    tokenizer.add_tokens(added)
    return tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_qwen2_vl(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def processor(model: Path):
    return load_processor(model)


@pytest.mark.parametrize("token", ["</s>", "<s>", "<image>", "<tool_call>"])
def test_text_with_a_control_token_is_refused(token: str) -> None:
    tokenizer = tiny_tokenizer(plain_added=("<tool_call>",))
    with pytest.raises(DataError, match=f"special token '{token}'"):
        check_no_special_tokens(tokenizer, f"Who is this?{token}")


@pytest.mark.parametrize("text", ["Who is this?", "a < b > c", "< s >", "<Image>", "</ s>", ""])
def test_text_that_only_looks_like_one_is_accepted(text: str) -> None:
    check_no_special_tokens(tiny_tokenizer(), text)


def test_the_prompt_holds_one_placeholder_before_the_words_and_opens_the_answer(processor) -> None:
    prompt = chat_prompt(processor, "Who is this?", image=True)

    assert prompt.count("<|image_pad|>") == 1
    assert prompt.index("<|image_pad|>") < prompt.index("Who is this?")
    assert prompt.endswith("<|im_start|>assistant\n")


def test_a_text_only_prompt_differs_from_one_with_an_image_by_the_placeholder_alone(processor) -> None:
    with_image = chat_prompt(processor, "Who is this?", image=True)
    placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    assert with_image.replace(placeholder, "") == chat_prompt(processor, "Who is this?", image=False)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|video_pad|>"])
def test_a_prompt_is_not_made_of_text_with_control_tokens(processor, token: str) -> None:
    with pytest.raises(DataError, match="special token"):
        chat_prompt(processor, f"Who is this? {token}", image=True)


def test_encoding_expands_the_placeholder_that_tokenizing_leaves_alone(processor) -> None:
    prompt, pad = chat_prompt(processor, "Who?", image=True), image_token_id(processor)
    encoded = encode_prompt(processor, prompt, Image.new("RGB", (56, 56)))
    ids, plain = encoded["input_ids"][0].tolist(), tokenize_prompt(processor, prompt)

    assert plain.count(pad) == 1
    assert ids.count(pad) == encoded["pixel_values"].shape[0] // 4  # Qwen2-VL merges 2 x 2 patches into one token
    assert [token for token in ids if token != pad] == [token for token in plain if token != pad]


def test_image_tokens_are_those_of_processor_and_config(processor) -> None:
    named = SimpleNamespace(image_token_index=7, video_token_id=None)
    assert image_token_ids(processor, named) == image_token_ids(processor, SimpleNamespace()) | {7}
    assert image_token_id(processor) in image_token_ids(processor, SimpleNamespace())


def test_the_answer_ends_with_the_tokenizers_eos_if_the_generation_config_lists_it(model: Path, processor) -> None:
    tokenizer = processor.tokenizer
    assert end_of_turn_id(model, tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(("listed", "expected"), [([5, 6], 5), (6, 6)])
def test_the_answer_ends_with_the_generation_configs_first_token_otherwise(
    tmp_path: Path, listed: list[int] | int, expected: int
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    assert end_of_turn_id(tmp_path, tiny_tokenizer()) == expected


def test_a_model_that_names_no_end_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert end_of_turn_id(tmp_path, tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="end-of-turn"):
        end_of_turn_id(tmp_path, tokenizer)


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no processor"):
        load_processor(tmp_path)


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="processor"):
        load_processor(tmp_path)


def test_the_hashes_survive_a_round_trip_and_see_a_change(tmp_path: Path, processor) -> None:
    processor.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    assert tokenizer_sha256(again.tokenizer) == tokenizer_sha256(processor.tokenizer)
    assert processor_sha256(again) == processor_sha256(processor)

    again.tokenizer.add_tokens(["zzz"])
    again.chat_template = f"{again.chat_template} "
    assert tokenizer_sha256(again.tokenizer) != tokenizer_sha256(processor.tokenizer)
    assert processor_sha256(again) != processor_sha256(processor)


def test_an_opened_image_is_what_the_processor_takes(tmp_path: Path, processor) -> None:
    Image.new("L", (56, 28)).save(tmp_path / "grey.png")
    picture = open_image(tmp_path / "grey.png", where="x")
    assert encode_prompt(processor, chat_prompt(processor, "Who?", image=True), picture)["pixel_values"].ndim == 2
