"""A student's model card, once it has been measured: before and after, beside what it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from vgid.pipeline.report import summary_rows
from vgid.pipeline.results import with_temporary
from vgid.stage2_distill.checkpoints import write_json
from vgid.stage2_distill.lineage import FILE

HEADING = "## Before and after"


def has_evaluation(card_path: Path) -> bool:
    """Whether `add_evaluation` was called since the student was made."""
    return f"\n{HEADING}" in card_path.read_text()


def add_evaluation(card_path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Put a table of the deciding metrics into a card, in place of one that is there.

    Its new hash goes into `vgid.json`, which names every file by its hash.

    Args:
        card_path: `README.md` of a saved student.
        metrics: Metric rows of base, student and others, as `results.json` has them.
    """
    header, *lines = summary_rows(metrics)
    rows = [header, ["---"] * len(header), *lines]
    shown = "\n".join(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)
    sections = card_path.read_text().rstrip().split("\n## ")
    kept = [section.rstrip() for section in sections if not f"## {section}".startswith(HEADING)]
    text = "\n\n## ".join(kept) + f"\n\n{HEADING}\nWith 95% intervals by subject.\n\n{shown}\n"
    with_temporary(card_path, lambda path: path.write_text(text))
    lineage = card_path.parent / FILE
    content = json.loads(lineage.read_text())
    content["files"][card_path.name] = sha256(text.encode()).hexdigest()
    write_json(lineage, content)
