"""The cache's README: a data-set card by which `datasets.load_dataset(DIR)` reads exactly the committed parts.

It is derived from the manifest and rewritten after each commit, so its word counts for nothing where the two differ.
What this gives up: `datasets` checks no hashes, and keeps a copy of its own in its cache directory.
"""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path

from vgid.cache.files import temporary_file
from vgid.cache.manifest import CARD_NAME, Manifest, load_manifest, manifest_path


def write_card(cache: Path) -> None:
    """Bring the README in line with the newest manifest, also when other writers commit meanwhile."""
    while (manifest := load_manifest(cache)) is not None:
        text = card_text(manifest)
        card = cache / CARD_NAME
        if not card.exists() or card.read_text(encoding="utf-8") != text:
            directory = manifest_path(cache, manifest.number).parent
            with temporary_file(directory, lambda file, text=text: file.write(text.encode())) as temporary:
                os.replace(temporary, card)
        # Whoever replaced last looks last, so the newest manifest wins.
        if load_manifest(cache) == manifest:
            return


def card_text(manifest: Manifest) -> str:
    """Markdown with a YAML head that lists the parts by split."""
    rows = sum(part.rows for part in manifest.parts)
    tokens = sum(part.tokens for part in manifest.parts)
    teacher = "\n".join(f"- {name}: `{value}`" for name, value in sorted(manifest.teacher.items()))
    return (
        f"---\npretty_name: vgid teacher targets\n{_configs(manifest)}---\n"
        f"# vgid cache, manifest {manifest.number}\n\n"
        f"{rows} targets, {tokens} response tokens, format {manifest.format_version}, by `vgid teacher generate`.\n"
        "Read it with `vgid sql`, `vgid distill` or `datasets.load_dataset` (which keeps a copy in its own cache).\n"
        "This file is rewritten at every commit; `manifest/` is the truth.\n\n"
        "It holds what a teacher says about the very data that somebody wants forgotten: treat it like that data.\n\n"
        f"Teacher:\n\n{teacher}\n"
    )


def _configs(manifest: Manifest) -> str:
    if not manifest.parts:
        return ""
    lines = ["configs:", "- config_name: default", "  data_files:"]
    for split, parts in groupby(manifest.parts, key=lambda part: part.split):
        lines += [f'  - split: "{split}"', "    path:", *(f"    - {part.path}" for part in parts)]
    return "\n".join(lines) + "\n"
