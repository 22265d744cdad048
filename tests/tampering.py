"""Caches changed behind vgid's back in such a way that every hash fits: only what is said in them is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


def manifest_path(cache: Path) -> Path:
    return max((cache / "manifest").glob("*.json"))


def change_manifest(cache: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the newest manifest; its own hash is made anew."""
    path = manifest_path(cache)
    body = json.loads(path.read_bytes())
    del body["sha256"]
    change(body)
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    path.write_text(json.dumps({"sha256": sha256(canonical).hexdigest(), **body}))


def parts_of(cache: Path) -> list[dict[str, Any]]:
    """What the newest manifest says of its parts, by path."""
    return json.loads(manifest_path(cache).read_bytes())["parts"]


def change_part(cache: Path, change: Callable[[bytes], bytes], *, part: int = 0, **said: Any) -> str:
    """Change the bytes of a part and commit them under its old name, with what else is `said` of it."""
    path = parts_of(cache)[part]["path"]
    data = change((cache / path).read_bytes())
    (cache / path).write_bytes(data)
    said = {"bytes": len(data), "sha256": sha256(data).hexdigest(), **said}
    change_manifest(cache, lambda body: body["parts"][part].update(said))
    return path


def change_rows(cache: Path, change: Callable[[list[Row]], object], *, part: int = 0) -> str:
    """Change the rows of a part; the manifest then counts what is there, and the name stays."""
    table = pq.read_table(cache / parts_of(cache)[part]["path"])
    rows = table.to_pylist()
    change(rows)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink, write_page_checksum=True)
    tokens = sum(len(row["token_ids"]) for row in rows)
    return change_part(cache, lambda _: sink.getvalue(), part=part, rows=len(rows), tokens=tokens, kinds=None)
