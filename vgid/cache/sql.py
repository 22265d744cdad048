"""SQL over a cache: the views of `vgid.cache.views` in the sandbox of `vgid.cache.sandbox`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from vgid.cache.reader import open_cache
from vgid.cache.sandbox import SCHEME, CommittedFiles, locked_connection
from vgid.cache.store import Store
from vgid.cache.views import create_views
from vgid.errors import ConfigError

if TYPE_CHECKING:
    import duckdb

_ROWS_PER_BATCH = 2048  # rows of `targets` can be large
_INTERRUPT_EVERY_S = 0.1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a query gives, as it comes."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


def connect(cache: Path | str | Store, *, memory: str | None = None) -> duckdb.DuckDBPyConnection:
    """A locked, in-memory DuckDB with the views `VIEWS` over a cache; the caller closes it.

    Args:
        cache: Path or URL.
        memory: Most memory for DuckDB's own work, such as `4GB` or `50%`; None for DuckDB's default.

    Raises:
        CacheError: no cache there, or a part is missing or damaged.
        ConfigError: `memory` is no amount of memory.
    """
    return _connect(CommittedFiles(open_cache(cache)), memory)


def run_sql(
    cache: Path | str | Store, query: str, *, timeout_s: float | None = None, memory: str | None = None
) -> pa.Table:
    """Run one query and return all of its rows; see `open_query`."""
    with open_query(cache, query, timeout_s=timeout_s, memory=memory) as answer:
        return pa.Table.from_batches(answer.batches, answer.schema)


@contextmanager
def open_query(
    cache: Path | str | Store, query: str, *, timeout_s: float | None = None, memory: str | None = None
) -> Iterator[Answer]:
    """Run one query in a fresh connection of `connect`; the block takes its rows in batches.

    The query runs in a thread of its own, so that Ctrl-C and the time limit can stop it: DuckDB itself does not listen
    while it computes an Arrow result.

    Args:
        cache: Path or URL.
        query: One or more statements; the last one answers.
        timeout_s: Most seconds from here to the last batch; None for no limit.
        memory: As in `connect`.

    Raises:
        ConfigError: the SQL is wrong, tries what the sandbox refuses, or exceeds a limit.
        CacheError: no cache there, or a part that the query needs is missing or damaged; the message names it.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    files = CommittedFiles(open_cache(cache))
    with closing(_connect(files, memory)) as connection, ThreadPoolExecutor(1) as worker:

        def run(step: Callable[[], _T]) -> _T:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            future = worker.submit(step)
            try:
                finished, _ = wait([future], left)
            finally:  # also on Ctrl-C
                _stop(connection, future)
            if not finished:
                raise ConfigError(f"SQL: stopped after {timeout_s:g} s; ask for less, or raise --timeout (0: no limit)")
            with _explained(files):
                return future.result()

        def batches() -> Iterator[pa.RecordBatch]:
            while (batch := run(lambda: next(reader, None))) is not None:
                yield batch

        if not run(lambda: connection.extract_statements(query)):
            raise ConfigError(f"SQL: {query[:80]!r} holds no statement; ask with a SELECT")
        reader = run(lambda: connection.sql(query).to_arrow_reader(_ROWS_PER_BATCH))
        yield Answer(schema=reader.schema, batches=batches())


def _connect(files: CommittedFiles, memory: str | None) -> duckdb.DuckDBPyConnection:
    connection = locked_connection(files, memory=memory)
    try:
        with _explained(files):
            create_views(connection, files.manifest, scheme=SCHEME)
    except BaseException:
        connection.close()
        raise
    return connection


def _stop(connection: duckdb.DuckDBPyConnection, step: Future[_T]) -> None:
    """Wait for the thread to be done; an interrupt that comes between two statements is lost, so more than one."""
    while not step.done():
        connection.interrupt()
        wait([step], _INTERRUPT_EVERY_S)


@contextmanager
def _explained(files: CommittedFiles) -> Iterator[None]:
    """Turn DuckDB's errors into ours; what the file system refused counts even if DuckDB goes on without it."""
    import duckdb

    try:
        yield
    except (duckdb.Error, OSError) as error:  # an OSError is what Arrow makes of DuckDB's while rows come
        raise files.refusal or ConfigError(f"SQL: {_reason(str(error))}") from error
    if files.refusal:
        raise files.refusal


def _reason(message: str) -> str:
    """One line without the picture of where in the query it is."""
    if message.startswith("Out of Memory"):
        return "the query needs more memory than it may take; ask for less, or raise --memory"
    reason = " ".join(message.partition("\nLINE ")[0].split())
    if message.startswith("Permission Error"):
        return f"only the committed files of this cache may be read ({reason})"
    return reason
