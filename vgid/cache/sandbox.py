"""A DuckDB that can read the files one manifest names and nothing else, and write nothing.

"It is a SELECT" does not mean that it only reads (a CTE may hold a COPY), and DuckDB checks no Parquet checksums. So
DuckDB gets no file system but the one below, which gives it the bytes of what the manifest names, once their sha256
fits. What this gives up: a file is read whole, also for one column, and nothing spills to disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from fsspec import AbstractFileSystem

from vgid.cache.reader import Cache, read_verified
from vgid.cache.store import is_remote
from vgid.errors import CacheError, ConfigError, VgidError

if TYPE_CHECKING:
    import duckdb

SCHEME = "vgid://"

# Order matters: the directory list cannot be set once external access is off, nothing once the lock is on.
_LOCKS = (
    "SET enable_progress_bar=false",  # on stdout, among the rows
    "SET parquet_metadata_cache=true",  # otherwise every view opens its first file anew
    "SET python_enable_replacements=false",
    "SET temp_directory=''",
    f"SET allowed_directories=['{SCHEME}']",
    "SET enable_external_access=false",
    "SET disabled_filesystems='LocalFileSystem'",
    "SET lock_configuration=true",
)


def locked_connection(files: CommittedFiles, *, memory: str | None = None) -> duckdb.DuckDBPyConnection:
    """An empty in-memory DuckDB that sees `files` under `vgid://` and whose configuration cannot be changed.

    Args:
        files: What it may read.
        memory: Most memory for DuckDB's own work, such as `4GB` or `50%`; None for DuckDB's default.

    Raises:
        ConfigError: `memory` is no amount of memory.
    """
    import duckdb

    connection = duckdb.connect(":memory:")
    try:
        connection.register_filesystem(files)
        if memory is not None:
            try:
                connection.execute("SET memory_limit = $1", [memory])
            except duckdb.Error as error:
                raise ConfigError(f"--memory {memory!r} is no amount of memory; give one like 4GB or 50%") from error
        if not files.is_remote:  # reading ahead makes a bucket faster, but a disk only fills twice the memory
            connection.execute("SET async_threads=0")
        for statement in _LOCKS:
            connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


class CommittedFiles(AbstractFileSystem):
    """Read-only file system of what one manifest names; `refusal` keeps why it last refused."""

    protocol = "vgid"
    cachable = False

    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self.refusal: VgidError | None = None
        named = [*cache.manifest.parts, *([cache.manifest.vocabulary] if cache.manifest.vocabulary else [])]
        self.manifest = cache.manifest
        self.is_remote = is_remote(cache.store)
        self._store = cache.store
        self._files = {SCHEME + file.path: file for file in named}
        self._contents: WeakValueDictionary[str, _Content] = WeakValueDictionary()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> Any:
        """Open a file for reading; it is read and hashed at the first read."""
        if mode != "rb":
            raise self._refuse(ConfigError(f"SQL may only read this cache; {path} cannot be written"))
        if path not in self._files:
            raise self._refuse(ConfigError(f"SQL may only read the committed files of this cache; {path} is none"))
        return _SharedFile(self._contents.setdefault(path, _Content(lambda: self._read(path))))

    def glob(self, path: str, *_: Any, **__: Any) -> list[str]:
        """Files that match; at least one must, or a query over a wrong path would answer as if it were empty."""
        if not (matches := [name for name in self._files if fnmatch(name, path)]):
            raise self._refuse(ConfigError(f"SQL may only read the committed files of this cache; {path} is none"))
        return matches

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size of a file, as the manifest has it."""
        if path not in self._files:
            raise FileNotFoundError(path)
        return {"name": path, "size": self._files[path].bytes, "type": "file"}

    def modified(self, path: str) -> datetime:
        """The same for all files: a committed one never changes."""
        return datetime.fromtimestamp(0, tz=UTC)

    def _read(self, path: str) -> bytes:
        try:
            return read_verified(self._store, self._files[path])
        except CacheError as error:
            raise self._refuse(error) from error

    def _refuse(self, reason: VgidError) -> VgidError:
        self.refusal = reason
        return reason


class _Content:
    """The bytes of one file, read when first asked for and kept while a handle of it is open."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._data: bytes | None = None

    def get(self) -> memoryview:
        with self._lock:
            if self._data is None:
                self._data = self._read()
            return memoryview(self._data)


class _SharedFile:
    """A handle that DuckDB's threads read through together: each has its own position.

    DuckDB seeks and reads in two calls, between which another thread may seek, so one position for all (as an
    `io.BytesIO` has) gives a thread the bytes of another place.
    """

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._here = threading.local()

    def seek(self, position: int) -> int:
        self._here.position = position
        return position

    def tell(self) -> int:
        return getattr(self._here, "position", 0)

    def read(self, count: int) -> bytes:
        found = bytes(self._content.get()[self.tell() : self.tell() + count])
        self.seek(self.tell() + len(found))
        return found

    def close(self) -> None:
        """The bytes go with the last handle."""
