"""A table of targets to the bytes of one Parquet part, and back with every page checksum verified.

Two profiles, one schema: the choice changes bytes and who can read them, never a value. `default` is the smaller one
and needs DuckDB 2.0 or newer, polars, pyarrow or `datasets`; `compat` costs 6% more and is also read by DuckDB 1.4 and
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

ROW_GROUP_ROWS = 256
"""A part as the writer makes it is one row group: halves would cost 8% more bytes where answers are short."""
PAGE_BYTES = 4 * 2**20
"""Before compression. zstd sees longer planes of ids and values than in pages of the usual 1 MiB."""

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
    pq.write_table(table, sink, **parquet_options(profile))
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
        # One thread: on bytes in memory more of them gain nothing, and a job should end without any left running.
        parquet = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False)
        if not parquet.schema_arrow.equals(SCHEMA):
            raise CacheError(f"{where}: its columns are not those of row version {ROW_VERSION}; make a new cache")
        return parquet.read(columns=None if columns is None else list(columns), use_threads=False)
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a name in the footer is not UTF-8
        reason = str(error).splitlines()[0]
        raise CacheError(f"{where}: damaged ({reason}); restore it from a copy, or make a new cache") from error


def profile_of(data: bytes) -> Profile:
    """The profile of a part, from the footer of a file that `decode_part` reads."""
    columns = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    encodings = next(column.encodings for column in map(columns.column, range(columns.num_columns)) if _is_ids(column))
    return "compat" if _INT_ENCODING["compat"] in encodings else "default"


def parquet_options(profile: Profile) -> dict[str, Any]:
    """What `pyarrow.parquet.write_table` is told for this profile."""
    lists = [_leaf(field) for field in SCHEMA if pa.types.is_list(field.type)]
    # The high bytes of ids and of grid values repeat; gathered in planes zstd sees it, dictionaries of them only cost.
    encodings = {pa.int32(): _INT_ENCODING[profile], pa.float32(): "BYTE_STREAM_SPLIT"}
    return {
        "compression": "zstd",
        "compression_level": 2,  # 3 saves 1 to 2% of the bytes for 13 to 19% of the speed, 5 another 2% for 40%
        "column_encoding": {path: encodings[kind] for path, kind in lists if kind in encodings},
        "use_dictionary": [field.name for field in SCHEMA if pa.types.is_string(field.type)],
        # No reader skips rows by the extremes of their lists, and finding them takes time.
        "write_statistics": [field.name for field in SCHEMA if not pa.types.is_list(field.type)],
        "write_page_checksum": True,
        "row_group_size": ROW_GROUP_ROWS,
        "data_page_size": PAGE_BYTES,
    }


def _is_ids(column: Any) -> bool:
    return column.path_in_schema.startswith("topk_ids.")


def _leaf(field: pa.Field) -> tuple[str, pa.DataType]:
    """What Parquet calls the numbers inside a list column, and their type."""
    path, kind = field.name, field.type
    while pa.types.is_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path, kind
