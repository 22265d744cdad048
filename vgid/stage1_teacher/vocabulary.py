"""The token table of a tokenizer, for the cache: what each id stands for when people read targets in SQL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vgid.cache.vocabulary import Token


def token_table(tokenizer: Any, *, end_ids: Iterable[int]) -> list[Token]:
    """One entry per id of the tokenizer.

    Each id is decoded behind a letter, which is then cut off: alone, many tokenizers drop the space before a word.

    Args:
        tokenizer: A Hugging Face tokenizer.
        end_ids: Ids at which an answer may end.
    """
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = len(tokenizer.decode(letter, clean_up_tokenization_spaces=False))
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special, ends = added.union(tokenizer.all_special_ids), set(end_ids)
    ids = range(len(tokenizer))
    texts = tokenizer.batch_decode([[*letter, token_id] for token_id in ids], clean_up_tokenization_spaces=False)
    return [
        Token(token_id=token_id, text=text[start:], special=token_id in special, end=token_id in ends)
        for token_id, text in zip(ids, texts, strict=True)
    ]
