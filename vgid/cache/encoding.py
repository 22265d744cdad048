"""A table of targets to the bytes of one Parquet part, and back with every page checksum verified.

Two profiles, one schema: the choice changes bytes and who can read them, never a value. `default` is the smaller one
and needs DuckDB 2.0 or newer, pyarrow, polars or `datasets`; `compat` costs more and is also read by DuckDB 1.4 and
1.5, which know BYTE_STREAM_SPLIT for floats but not for integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from vgid.cache.schema import ROW_VERSION, SCHEMA
from vgid.errors import CacheError

Profile = Literal["default", "compat"]

ROW_GROUP_ROWS = 128

_TEXT = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
_INTS = [f"{name}.list.element" for name in ("token_ids", "token_rank")] + ["topk_ids.list.element.list.element"]
_FLOATS = [f"{name}.list.element" for name in ("token_logprob", "logsumexp", "entropy", "tail_logprob")] + [
    "topk_logprobs.list.element.list.element"
]
_INT_ENCODING: dict[Profile, str] = {"default": "BYTE_STREAM_SPLIT", "compat": "DELTA_BINARY_PACKED"}


def encode_part(table: pa.Table, profile: Profile = "default") -> bytes:
    """The bytes of a Parquet file with the rows of `table`, which has the columns of `SCHEMA`.

    Equal tables give equal bytes (under one version of pyarrow).

    Raises:
        CacheError: the table has other columns, or there is no such profile.
    """
    if not table.schema.equals(SCHEMA):
        raise CacheError(f"columns {table.schema.names} are not those of row version {ROW_VERSION}")
    if profile not in _INT_ENCODING:
        raise CacheError(f"encoding profile {profile!r} is unknown; choose from {', '.join(get_args(Profile))}")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **_options(profile))
    return sink.getvalue().to_pybytes()


def decode_part(data: bytes, where: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Decode the bytes of one part, whatever its profile, page checksums verified.

    Args:
        data: The whole file.
        where: What to call it in an error.
        columns: Which columns to decode; None for all.

    Raises:
        CacheError: damaged, or of another schema; the message begins with `where`.
    """
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if not parquet.schema_arrow.equals(SCHEMA):
            raise CacheError(f"{where}: its columns are not those of row version {ROW_VERSION}; make a new cache")
        return parquet.read(columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise CacheError(f"{where}: damaged ({reason}); restore it from a copy, or make a new cache") from error


def _options(profile: Profile) -> dict[str, Any]:
    # The high bytes of ids and of grid values repeat; gathered in planes zstd sees it, dictionaries of them only cost.
    numbers = {**dict.fromkeys(_INTS, _INT_ENCODING[profile]), **dict.fromkeys(_FLOATS, "BYTE_STREAM_SPLIT")}
    return {
        "row_group_size": ROW_GROUP_ROWS,
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": _TEXT,
        "column_encoding": numbers,
        "write_page_checksum": True,
    }
