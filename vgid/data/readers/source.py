"""What to read: a file or folder, and what is known about it beforehand.

A folder is one data set: its train-*.parquet and test-*.parquet files are read as one, under the folder's name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from vgid.data.examples import Example, Exposure
from vgid.data.readers.gallery import Gallery
from vgid.errors import DataError

PATTERNS = ("train-*.parquet", "test-*.parquet")

Outcome = Example | DataError
"""An example, or what is wrong with the item it would have been made from."""


@dataclass(frozen=True, slots=True)
class Source:
    """One data set to read."""

    path: Path
    """A Parquet, JSONL or CSV file, or a folder that holds train-*.parquet or test-*.parquet files."""
    _: KW_ONLY
    split: str | None = None
    """The split of its rows; None or empty where a table's own split column says it."""
    photo: Exposure | None = None
    """Whether the base model was trained on these photos, where that is known; a table's own column goes first."""

    @property
    def name(self) -> str:
        """What example ids begin with: the folder's name for Hugging Face's file names, otherwise the file's."""
        path = self.path.resolve()
        if path.is_dir():
            return path.name
        return path.parent.name if any(map(path.match, PATTERNS)) else path.stem

    def files(self) -> list[Path]:
        """The files to read, in order.

        Raises:
            DataError: a folder without files of the expected names.
        """
        if not self.path.is_dir():
            return [self.path]
        found = [file for pattern in PATTERNS for file in sorted(self.path.glob(pattern))]
        if not found:
            raise DataError(f"the folder holds neither {' nor '.join(PATTERNS)}; name the file itself")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a row reader knows about the data set its row stands in, and what it has seen of it so far."""

    name: str
    split: str | None
    photo: Exposure | None
    gallery: Gallery
    seen: Counter[str] = field(default_factory=Counter)
    """By subject: how many photos (MLLMU-Bench) or questions (tables) came before, which numbers the next ones."""
