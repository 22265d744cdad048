"""A cache in a bucket: "make this object unless there is one" is all that a commit needs.

An object is invisible before it is complete, so there is nothing to link, sync or sweep. What this gives up: a second
transfer of all that is written, since it is read back; and services that cannot make an object conditionally.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fsspec.core import url_to_fs

from vgid.errors import ConfigError

_PACKAGES = {"s3": "'vgid[s3]'", "s3a": "'vgid[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
"""Protocols whose fsspec class sends the condition with the write (`If-None-Match: *`, generation 0, no overwriting),
and what to install for them. The others, `memory` too, look first and write then, so that two writers can both win."""

# s3fs asks for an object's size before it reads it, unless it may not split the reading.
_OPTIONS = {"s3": {"max_concurrency": 1}, "s3a": {"max_concurrency": 1}}
_CONFLICTS = ("ConditionalRequestConflict", "OperationAborted")
_ATTEMPTS = 5
_WAIT_S = 0.1


class ObjectStore:
    """The objects below a URL. Who may read them is up to the bucket."""

    def __init__(self, url: str) -> None:
        """Nothing is read or made yet.

        Args:
            url: `s3://bucket/prefix`; credentials and endpoint come from where the service's own tools take them.

        Raises:
            ConfigError: the protocol has no exclusive creation or its package is missing, or no bucket is named.
        """
        self.location = url.rstrip("/")
        protocol = url.partition("://")[0]
        if protocol not in _PACKAGES:
            raise ConfigError(
                f"cache {url}: {protocol}:// cannot make a file only if there is none, which keeps two writers apart; "
                f"give a directory or one of {', '.join(f'{name}://' for name in _PACKAGES)}"
            )
        try:
            # Without fsspec's caches, what other writers did is seen at once.
            self._files, root = url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True, **_OPTIONS.get(protocol, {})
            )
        except ImportError as error:
            raise ConfigError(
                f"cache {url}: {protocol}:// needs a package that is not installed: pip install {_PACKAGES[protocol]}"
            ) from error
        self._root = root.rstrip("/")
        if not self._root.partition("/")[0]:
            raise ConfigError(f"cache {url}: names no bucket; give {protocol}://bucket/prefix")
        self._is_proved_exclusive = False

    def describe(self, name: str) -> str:
        """The object's URL."""
        return f"{self.location}/{name}"

    def read(self, name: str) -> bytes:
        """See `Store`."""
        with self._readable_errors(name):
            return self._files.cat_file(self._path(name))

    def create(self, name: str, data: bytes) -> bool:
        """See `Store`. What stands there in the end decides, not the answer to the write.

        A client repeats a write whose answer was lost and is told that the name is taken, by its own object. So an
        object of these very bytes counts as created. Should another writer have made it, it does no harm: both want
        the same state, and have it.
        """
        for attempt in range(_ATTEMPTS):
            is_made = self._put_unless_there(name, data)
            with suppress(FileNotFoundError):  # another writer deleted or is deleting it
                if self.read(name) == data:
                    self._prove_exclusive(name, data)
                    return True
                if is_made:
                    raise OSError(errno.EIO, "the service gave back other bytes than were written", self.describe(name))
                return False
            time.sleep(attempt * _WAIT_S)
        raise OSError(errno.EBUSY, "others make and delete it all the time", self.describe(name))

    def replace(self, name: str, data: bytes) -> None:
        """See `Store`."""
        with self._readable_errors(name):
            self._files.pipe_file(self._path(name), data)

    def delete(self, name: str) -> None:
        """See `Store`. A bucket with versions keeps the old one."""
        with suppress(FileNotFoundError), self._readable_errors(name):
            self._files.rm_file(self._path(name))

    def names(self, folder: str = "") -> list[str]:
        """See `Store`."""
        start = f"{self._path(folder)}/" if folder else f"{self._root}/"
        with self._readable_errors(folder):
            found = self._files.find(start.rstrip("/"))
        # An object that is named like a folder marks one, in the eyes of some tools.
        paths = [path for path in found if path.startswith(start) and not path.endswith("/")]
        return sorted(path.removeprefix(f"{self._root}/") for path in paths)

    def size(self, name: str) -> int:
        """See `Store`."""
        with self._readable_errors(name):
            return self._files.info(self._path(name))["size"]

    def sweep(self, *, older_than_s: float) -> None:
        """Nothing to do: what a dead writer had not sent in full is no object."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put_unless_there(self, name: str, data: bytes) -> bool:
        with self._readable_errors(name):
            try:
                self._files.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if _service_code(error) in _CONFLICTS:  # someone else is writing or deleting it right now
                    return False
                raise
        return True

    def _prove_exclusive(self, name: str, data: bytes) -> None:
        """Once: a service that ignores the condition would let writers overwrite each other, and say nothing."""
        if not self._is_proved_exclusive and self._put_unless_there(name, data):
            reason = "the service overwrites an object that it was told to make only if there is none; use another"
            raise OSError(errno.ENOTSUP, reason, self.describe(name))
        self._is_proved_exclusive = True

    @contextmanager
    def _readable_errors(self, name: str) -> Iterator[None]:
        """Whatever the client library raises becomes an `OSError` in the service's words.

        Only a missing object stays a `FileNotFoundError`; a missing bucket is none.
        """
        try:
            yield
        except Exception as error:  # each library has its own, and not all are `OSError`s
            if isinstance(error, FileNotFoundError) and _service_code(error) != "NoSuchBucket":
                raise
            words = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
            reason = f"{' '.join(words.split())}; check bucket, credentials and endpoint"
            raise OSError(errno.EIO, reason, self.describe(name)) from error


def _service_code(error: Exception) -> str | None:
    """How S3 names the error; s3fs keeps it in the exception's cause."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
