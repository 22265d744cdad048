"""The token table of the teacher's tokenizer, kept in the cache so that SQL can show what an id stands for.

One Parquet file of `VOCABULARY_SCHEMA`, named by its own hash and by the manifest. It holds nothing of the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq

from vgid.cache.manifest import VocabularyFile
from vgid.cache.reader import Cache, read_verified
from vgid.cache.store import Store

VOCABULARY_SCHEMA = pa.schema(
    [
        pa.field("token_id", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("special", pa.bool_(), nullable=False),
        pa.field("end", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One entry of the table."""

    token_id: int
    text: str
    """Decoded by itself; bytes that are no whole character show as U+FFFD."""
    special: bool
    """An added token with a meaning of its own, such as an image placeholder."""
    end: bool
    """Ends the assistant's turn: the last token of a response whose `finish_reason` is `stop` or `forced`."""


def write_vocabulary(store: Store, tokens: Iterable[Token]) -> VocabularyFile:
    """Write the table; it counts once a manifest names it.

    Raises:
        OSError: the disk refuses.
    """
    rows = sorted(tokens, key=lambda token: token.token_id)
    columns = [[getattr(token, name) for token in rows] for name in VOCABULARY_SCHEMA.names]
    sink = pa.BufferOutputStream()
    table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=VOCABULARY_SCHEMA)
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    digest = sha256(data).hexdigest()
    path = f"vocabulary/{digest[:24]}.parquet"
    store.create(path, data)
    return VocabularyFile(path=path, rows=len(rows), bytes=len(data), sha256=digest)


def read_vocabulary(cache: Cache) -> pa.Table:
    """The table, sorted by `token_id`; empty where the cache has none.

    Raises:
        CacheError: it is missing or damaged.
    """
    if cache.manifest.vocabulary is None:
        return VOCABULARY_SCHEMA.empty_table()
    data = read_verified(cache.store, cache.manifest.vocabulary)
    return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
