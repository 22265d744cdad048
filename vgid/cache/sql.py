"""SQL over a cache: three views in a DuckDB that can read the committed parts and nothing else, and write nothing.

"It is a SELECT" does not mean that it only reads (a CTE may hold a COPY), and DuckDB checks no Parquet checksums. So
DuckDB gets no file system but the one below, which opens for reading what the manifest names, once its sha256 fits.
What this gives up: every query hashes the parts it opens, and nothing spills to disk.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from fsspec import AbstractFileSystem

from vgid.cache.reader import Cache, open_cache, read_verified
from vgid.cache.schema import SCHEMA
from vgid.errors import CacheError, ConfigError, VgidError

if TYPE_CHECKING:
    import duckdb

_SCHEME = "vgid://"

# Order matters: the directory list cannot be set once external access is off, nothing once the lock is on.
_SANDBOX = (
    "SET python_enable_replacements=false",
    "SET temp_directory=''",
    f"SET allowed_directories=['{_SCHEME}']",
    "SET enable_external_access=false",
    "SET disabled_filesystems='LocalFileSystem'",
    "SET lock_configuration=true",
)

_TOKENS = """
CREATE VIEW tokens AS SELECT
    target_id, example_id, subject_id, split, task, modality, view, draw, response_kind, sample,
    unnest(generate_series(0, len(token_ids) - 1)) AS pos,
    unnest(token_ids) AS token_id, unnest(token_logprob) AS token_logprob, unnest(token_rank) AS token_rank,
    unnest(fact_mask) AS is_fact, unnest(logsumexp) AS logsumexp, unnest(entropy) AS entropy,
    unnest(tail_logprob) AS tail_logprob, exp(unnest(tail_logprob)) AS tail_mass,
    unnest(topk_ids) AS topk_ids, unnest(topk_logprobs) AS topk_logprobs
FROM targets
"""

_CANDIDATES = """
CREATE VIEW candidates AS SELECT
    target_id, example_id, subject_id, split, task, modality, view, draw, response_kind, sample, pos, token_id,
    unnest(generate_series(1, len(topk_ids))) AS rank,
    unnest(topk_ids) AS candidate_id, unnest(topk_logprobs) AS logprob, exp(unnest(topk_logprobs)) AS probability
FROM tokens
"""


class CommittedParts(AbstractFileSystem):
    """Read-only file system of the parts that one manifest names; `refusal` keeps why it last refused."""

    protocol = "vgid"
    cachable = False

    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self.refusal: VgidError | None = None
        self._store = cache.store
        self._parts = {_SCHEME + part.path: part for part in cache.manifest.parts}
        self.paths = list(self._parts)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> Any:
        """Open a part for reading; hashed and read through one descriptor."""
        if mode != "rb":
            raise self._refuse(ConfigError(f"SQL may only read this cache; {path} cannot be written"))
        if path not in self._parts:
            raise self._refuse(ConfigError(f"SQL may only read the committed parts of this cache; {path} is none"))
        try:
            return io.BytesIO(read_verified(self._store, self._parts[path]))
        except CacheError as error:
            raise self._refuse(error) from error

    def glob(self, path: str, *_: Any, **__: Any) -> list[str]:
        """Parts that match; at least one must, or a query over a wrong path would answer as if it were empty."""
        if not (matches := [name for name in self._parts if fnmatch(name, path)]):
            raise self._refuse(ConfigError(f"SQL may only read the committed parts of this cache; {path} is none"))
        return matches

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size of a part, as the manifest has it."""
        if path not in self._parts:
            raise FileNotFoundError(path)
        return {"name": path, "size": self._parts[path].bytes, "type": "file"}

    def modified(self, path: str) -> datetime:
        """The same for all parts: a committed part never changes."""
        return datetime.fromtimestamp(0, tz=UTC)

    def _refuse(self, reason: VgidError) -> VgidError:
        self.refusal = reason
        return reason


def connect(cache: Path | str) -> duckdb.DuckDBPyConnection:
    """A locked, in-memory DuckDB with the views `targets`, `tokens` and `candidates` over a cache.

    `targets` has the columns of the cache format; `tokens` one row per response position (`pos` from 0); `candidates`
    one row per stored candidate (`rank` from 1). The caller closes the connection.

    Raises:
        CacheError: no cache there, or a part is missing or damaged.
    """
    return _connect(CommittedParts(open_cache(cache)))


def run_sql(cache: Path | str, query: str) -> pa.Table:
    """Run one query in a fresh connection of `connect`.

    Raises:
        ConfigError: the SQL is wrong, or tries what the sandbox refuses.
        CacheError: no cache there, or a part that the query needs is missing or damaged; the message names it.
    """
    parts = CommittedParts(open_cache(cache))
    with closing(_connect(parts)) as connection, _translated(parts):
        if not connection.extract_statements(query):
            raise ConfigError(f"SQL: {query[:80]!r} holds no statement; ask with a SELECT")
        return connection.sql(query).to_arrow_table()


def _connect(parts: CommittedParts) -> duckdb.DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(":memory:")
    try:
        connection.register_filesystem(parts)
        for statement in _SANDBOX:
            connection.execute(statement)
        with _translated(parts):
            _create_views(connection, parts.paths)
    except BaseException:
        connection.close()
        raise
    return connection


def _create_views(connection: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    if files:
        connection.execute(f"CREATE VIEW targets AS SELECT * FROM read_parquet({files!r})")
    else:
        connection.register("targets", SCHEMA.empty_table())
    connection.execute(_TOKENS)
    connection.execute(_CANDIDATES)


@contextmanager
def _translated(parts: CommittedParts) -> Iterator[None]:
    """Turn DuckDB's errors into ours; what the file system refused counts even if DuckDB goes on without it."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise parts.refusal or ConfigError(f"SQL: {str(error).splitlines()[0]}") from error
    if parts.refusal:
        raise parts.refusal
