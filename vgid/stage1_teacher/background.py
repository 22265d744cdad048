"""Committing rows beside generation: a thread adds them to the cache while the engine computes the next ones.

The queue between the two is bounded, so an engine that outruns the disk waits; for how long is counted. An error of the
thread (a full disk, a damaged cache) is raised at the next `add`, or at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, Full, Queue
from threading import Thread
from types import TracebackType
from typing import Generic, TypeVar

Row = TypeVar("Row")

_POLL_SECONDS = 0.05


class Background(Generic[Row]):
    """Calls `work(row)` for every added row, in order, in a thread of its own.

    Leaving the context waits until all of them are done, also after an error of the caller: what was added is kept.
    """

    def __init__(self, work: Callable[[Row], None], *, size: int) -> None:
        """Hold at most `size` rows that were added and not yet worked on."""
        self.waited = 0.0
        """Seconds for which `add` found the queue full."""
        self._work, self._queue = work, Queue[Row | None](maxsize=size)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="vgid-commit", daemon=True)

    def __enter__(self) -> Background[Row]:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish all rows; raise the thread's error unless another is on its way."""
        self._put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def add(self, row: Row) -> None:
        """Hand over a row, waiting where the thread is behind.

        Raises:
            BaseException: whatever an earlier row's work raised.
        """
        if self._error is not None:
            raise self._error
        try:
            self._queue.put_nowait(row)
        except Full:
            started = time.monotonic()
            self._put(row)
            self.waited += time.monotonic() - started

    def _put(self, row: Row | None) -> None:
        while True:
            try:
                return self._queue.put(row, timeout=_POLL_SECONDS)
            except Full:
                if not self._thread.is_alive():
                    return

    def _run(self) -> None:
        while (row := self._queue.get()) is not None:
            try:
                self._work(row)
            except BaseException as error:
                self._error = error
                self._drain()
                return

    def _drain(self) -> None:
        """Make room, so that whoever waits goes on and meets the error."""
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            pass
