"""How a batch job is asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vgid.pipeline.console import say


class _Asked:
    """A signal handler that remembers; whoever listens inside somebody else's block shares that one's."""

    def __init__(self) -> None:
        self.asked = False
        self.notes: list[str] = []

    def __call__(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        say(f"stopping: {self.notes[-1]}")


@contextmanager
def stop_signal(note: str) -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and the first Ctrl-C into a flag; a second Ctrl-C interrupts at once.

    Inside another such block the flag is the same one: what came too late for the inner work still stops the outer.

    Args:
        note: What is done before the stop, said when it is asked for.
    """
    outer = signal.getsignal(signal.SIGTERM)
    handler = outer if isinstance(outer, _Asked) else _Asked()
    handler.notes.append(note)
    previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: handler.asked
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
        handler.notes.pop()
