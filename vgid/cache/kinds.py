"""How many rows of each kind a part holds: what `vgid cache status` counts without opening a part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Rows of one part with the same view, modality and response kind."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    view: str
    modality: str
    response_kind: str
    rows: int
    tokens: int
    """Response tokens, summed over the rows."""


def kinds_of(table: pa.Table) -> tuple[Kind, ...]:
    """The kinds of rows in a table with the columns of a target, sorted by view, modality and response kind."""
    rows: Counter[tuple[str, str, str]] = Counter()
    tokens: Counter[tuple[str, str, str]] = Counter()
    views, modalities, kinds = (table[name].to_pylist() for name in ("view", "modality", "response_kind"))
    lengths = np.diff(table["token_ids"].combine_chunks().offsets).tolist()
    for view, modality, kind, length in zip(views, modalities, kinds, lengths, strict=True):
        rows[view, modality, kind] += 1
        tokens[view, modality, kind] += length
    return tuple(
        Kind(view=key[0], modality=key[1], response_kind=key[2], rows=rows[key], tokens=tokens[key])
        for key in sorted(rows)
    )
