"""The cache's README: a data-set card by which `datasets.load_dataset(DIR)` reads exactly the committed parts.

It is derived from the manifest and rewritten after each commit, so its word counts for nothing where the two differ.
What this gives up: `datasets` checks no hashes, and keeps a copy of its own in its cache directory.
"""

from __future__ import annotations

from itertools import groupby

from vgid.cache.manifest import CARD_NAME, Manifest, load_manifest
from vgid.cache.store import Store


def write_card(store: Store) -> None:
    """Bring the README in line with the newest manifest, also when other writers commit meanwhile."""
    while (manifest := load_manifest(store)) is not None:
        text = card_text(manifest).encode()
        try:
            current = store.read(CARD_NAME)
        except FileNotFoundError:
            current = b""
        if current != text:
            store.replace(CARD_NAME, text)
        # Whoever replaced last looks last, so the newest manifest wins.
        if load_manifest(store) == manifest:
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
