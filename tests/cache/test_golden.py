"""Small caches that earlier formats left behind: read for good, whatever later versions write.

Each was made by the vgid of its time with the real engine on the shipped model; beside it lies what plain pyarrow and
json found in it then.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from vgid.cache.manifest import FORMAT_VERSION, READABLE_VERSIONS
from vgid.cache.reader import open_cache
from vgid.cache.schema import NO_CANDIDATE, Target
from vgid.cache.sql import run_sql
from vgid.cache.writer import CacheWriter

GOLDEN = Path(__file__).with_name("golden")
VERSIONS = [1]


@pytest.fixture(params=VERSIONS, ids=lambda version: f"format {version}")
def golden(request, tmp_path) -> Path:
    return shutil.copytree(GOLDEN / f"v{request.param}", tmp_path / f"v{request.param}")


def expected(cache: Path) -> dict[str, object]:
    return json.loads((GOLDEN / f"{cache.name}.json").read_text())


def plain(row: Target) -> dict[str, object]:
    """A row as JSON knows it, candidates without padding."""
    values = asdict(row)
    stored = row.topk_ids != NO_CANDIDATE
    for name in ("topk_ids", "topk_logprobs"):
        values[name] = [position[mask].tolist() for position, mask in zip(values[name], stored, strict=True)]
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def test_there_is_a_cache_of_every_readable_format():
    assert tuple(VERSIONS) == READABLE_VERSIONS


def test_every_value_reads_as_it_was_written(golden):
    rows = sorted(map(plain, open_cache(golden).iter_targets()), key=lambda row: str(row["target_id"]))

    found = {
        "rows": len(rows),
        "tokens": sum(len(row["token_ids"]) for row in rows),  # type: ignore[arg-type]
        "sha256": sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
    }
    assert found == expected(golden)


def test_sql_answers(golden):
    found = run_sql(golden, "SELECT count(DISTINCT target_id) AS rows, count(*) AS tokens FROM tokens").to_pylist()

    assert found == [{name: expected(golden)[name] for name in ("rows", "tokens")}]


def test_a_writer_goes_on_in_the_present_format(golden):
    before = open_cache(golden)
    row = next(before.iter_targets())
    manifest = before.manifest
    plan = {"digest": "another"}

    with CacheWriter(golden, teacher=manifest.teacher, settings=manifest.settings, plan=plan) as writer:
        writer.add(row)

    after = open_cache(golden).manifest
    assert (after.format_version, after.number, after.parts) == (FORMAT_VERSION, manifest.number + 1, manifest.parts)
