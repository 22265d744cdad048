"""What a person sees: progress on stderr (a bar on a terminal, rate-limited lines in a batch job), tables on stdout."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from decimal import Decimal
from itertools import pairwise
from typing import Any, Protocol

_LINE_EVERY_S = 10.0
_NARROWEST = 8
_EIGHTHS = "▁▂▃▄▅▆▇█"


class Report(Protocol):
    """Tells how far something has come."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show `done` of `total`, with a short note such as a rate."""
        ...


def quieten_libraries() -> None:
    """Leave the terminal to vgid: no deprecations and progress of the libraries underneath, and no telemetry."""
    # Deprecations inside the libraries underneath are nothing a user can act on.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("TQDM_DISABLE", "1")  # vgid draws its own progress
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def say(text: str) -> None:
    """One line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def one_speaks() -> Iterator[None]:
    """Of the processes that a launcher started for one training, the first speaks; what any of them raises is shown."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


def confirm(question: str) -> bool:
    """Ask on stderr; anything but yes is no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """A progress display for one task."""
    if sys.stderr.isatty():
        with _bar(title) as report:
            yield report
    else:
        yield _lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, note="")

        def report(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield report


def _lines(title: str) -> Report:
    first: tuple[float, int] | None = None
    last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal first, last
        now = time.monotonic()
        first = first or (now, done)  # what loading took before says nothing about what is left
        if done < total and now - last < _LINE_EVERY_S:
            return
        last = now
        left = (now - first[0]) / max(done - first[1], 1) * (total - done)
        say(f"{title}: {done:,}/{total:,} {note}" + (f", about {left:.0f} s left" if done < total else ""))

    return report


def sparkline(values: Sequence[float], *, width: int = 12) -> str:
    """A curve of numbers in one word, from 0 up; the oldest may share a column. Empty where stderr cannot."""
    if not values or "utf" not in (sys.stderr.encoding or "").lower():
        return ""
    columns = min(width, len(values))
    cut = [len(values) * column // columns for column in range(columns + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(cut)]
    top = max(means)
    # A divergence of nothing comes out a little below 0 by rounding.
    return "".join(_EIGHTHS[min(max(int(8 * mean / top), 0), 7)] if top > 0 else _EIGHTHS[0] for mean in means)


def table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], *, number: str = ".3f", width: int | None = None
) -> str:
    """A plain text table; numbers are right-aligned. With a width, its widest columns are cut until it fits."""
    cells = [[_cell(value, number) for value in row] for row in rows]
    widths = [max(len(header), *(len(row[i]) for row in cells), 0) for i, header in enumerate(headers)]
    cut = max(widths, default=0)
    while width and cut > _NARROWEST and sum(min(w, cut) + 2 for w in widths) - 2 > width:
        cut -= 1
    right = [
        bool(rows) and all(isinstance(row[i], int | float | Decimal) or row[i] is None for row in rows)
        for i in range(len(headers))
    ]

    def line(values: Sequence[str]) -> str:
        short = (value if len(value) <= cut else f"{value[: cut - 1]}…" for value in values)
        padded = (
            v.rjust(min(w, cut)) if r else v.ljust(min(w, cut)) for v, w, r in zip(short, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * min(w, cut) for w in widths)
    return "\n".join([line(list(headers)), rule, *(line(row) for row in cells)])


def _cell(value: Any, number: str) -> str:
    if value is None:
        return "-"
    return spelt_out(f"{value:{number}}" if isinstance(value, float) else str(value))


def spelt_out(text: str) -> str:
    """One line, whatever the text: control characters as escapes, for they would break a table, or the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def human_bytes(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
