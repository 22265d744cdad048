"""The token table against the tokenizer itself."""

import pytest

from vgid.cache.vocabulary import Token
from vgid.data.chat import end_of_turn_id, end_of_turn_ids, load_processor
from vgid.data.models import resolve_model
from vgid.stage1_teacher.vocabulary import token_table

SENTENCES = ["Where does Mara Quill live?", "naïve café, 北京 \N{SNOWMAN}", "  two  spaces\nand a line"]


@pytest.fixture(scope="module")
def base():
    directory = resolve_model("fictitious:base")
    tokenizer = load_processor(directory).tokenizer
    return tokenizer, token_table(tokenizer, end_ids=end_of_turn_ids(directory, tokenizer)), directory


def test_there_is_one_entry_per_id_in_order(base):
    tokenizer, table, _ = base

    assert [token.token_id for token in table] == list(range(len(tokenizer)))


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_texts_of_a_sentences_ids_make_the_sentence(base, sentence):
    tokenizer, table, _ = base
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    texts = [table[token_id].text for token_id in ids]

    assert len(ids) > 3
    if not any("\N{REPLACEMENT CHARACTER}" in text for text in texts):
        assert "".join(texts) == sentence
    assert any(text.startswith(" ") for text in texts), "a space before a word belongs to its token"


def test_control_tokens_are_special_and_the_end_of_turn_ends(base):
    tokenizer, table, directory = base
    special = {token.text for token in table if token.special}

    assert {"<|im_start|>", "<|im_end|>", "<|image_pad|>"} <= special
    assert table[end_of_turn_id(directory, tokenizer)].end
    assert sum(token.end for token in table) <= 3
    assert not table[tokenizer("a", add_special_tokens=False)["input_ids"][0]].special


def test_a_sentencepiece_like_tokenizer_keeps_its_spaces(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = {"<unk>": 0, "\u2581a": 1, "\u2581the": 2, "re": 3, "a": 4, "\u2581": 5}
    raw = Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    table = token_table(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>"), end_ids=[])

    assert table[2] == Token(token_id=2, text=" the", special=False, end=False)
    assert table[3].text == "re"
